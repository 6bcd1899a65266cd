//! `/v1/tenants`

use super::{
    Daemon,
    caller::Actor,
    refusal::{Answer, Body, Params},
    wire,
};
use axum::{Json, extract::State, response::Response};
use cloudpal_api as api;
use cloudpal_control::request::Request;
use cloudpal_model::Name;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(show, remove))
}

/// Every tenant of this host, with its devices and apps.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenant", responses((status = 200, body = api::TenantList)))]
async fn list(State(daemon): State<Daemon>) -> Answer<Json<api::TenantList>> {
    Ok(Json(api::TenantList { tenants: all(&daemon).await? }))
}

pub async fn all(daemon: &Daemon) -> Answer<Vec<api::Tenant>> {
    let view = daemon.view().await?;
    let mut tenants = Vec::with_capacity(view.tenants.len());
    for tenant in &view.tenants {
        tenants.push(wire::tenant(tenant, &daemon.peers(tenant.id).await));
    }
    Ok(tenants)
}

/// Make a tenant: its keys, its addresses, its network.
#[utoipa::path(
    post, path = "/v1/tenants", tag = "tenant", request_body = api::TenantAdd,
    responses((status = 200, body = api::Accepted))
)]
async fn add(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Body(add): Body<api::TenantAdd>,
) -> Answer<Response> {
    let api::TenantAdd { name, subnet_v4, prefix_v6 } = add;
    let accepted = daemon.request(&actor, Request::TenantAdd { name, subnet_v4, prefix_v6 }).await?;
    Ok(wire::accepted(&accepted))
}

/// One tenant.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}", tag = "tenant", params(("tenant" = String, Path)),
    responses((status = 200, body = api::Tenant))
)]
async fn show(State(daemon): State<Daemon>, Params(tenant): Params<Name>) -> Answer<Json<api::Tenant>> {
    let view = daemon.view().await?;
    let tenant = wire::find_tenant(&view, &tenant)?;
    Ok(Json(wire::tenant(tenant, &daemon.peers(tenant.id).await)))
}

/// Remove a tenant that has no apps, with its devices.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}", tag = "tenant", params(("tenant" = String, Path)),
    responses((status = 200, body = api::Accepted))
)]
async fn remove(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(name): Params<Name>,
) -> Answer<Response> {
    Ok(wire::accepted(&daemon.request(&actor, Request::TenantRemove { name }).await?))
}
