//! `/v1/tenants/{tenant}/data`: what every kind of data has in common.

mod carried;
mod cores;
mod cursors;
mod entries;
mod files;
mod uploads;

pub use entries::bytes as entry_key;

use super::{
    Daemon,
    caller::Actor,
    refusal::{Answer, Body, Params},
};
use axum::{Json, extract::State};
use cloudpal_api as api;
use cloudpal_model::Name;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(quota))
        .routes(routes!(compact))
        .routes(routes!(show, remove))
        .routes(routes!(share))
        .routes(routes!(catch_up))
        .routes(routes!(verify))
        .routes(routes!(peers, peer_add))
        .merge(carried::routes())
        .merge(cores::routes())
        .merge(cursors::routes())
        .merge(entries::routes())
        .merge(files::routes())
}

/// The tenant's data, and what it takes on the disk.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data", tag = "data", params(("tenant" = String, Path)),
    responses((status = 200, body = api::DataList))
)]
async fn list(State(daemon): State<Daemon>, Params(tenant): Params<Name>) -> Answer<Json<api::DataList>> {
    Ok(Json(daemon.data_list(&tenant).await?))
}

/// Make a core, bee, drive or trie, or seed what somebody else writes.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data", tag = "data", params(("tenant" = String, Path)),
    request_body = api::DataAdd, responses((status = 200, body = api::Data))
)]
async fn add(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(tenant): Params<Name>,
    Body(add): Body<api::DataAdd>,
) -> Answer<Json<api::Data>> {
    Ok(Json(daemon.data_add(&actor, &tenant, add).await?))
}

/// How much of the host's disk the tenant's data may take.
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/data-quota", tag = "data", params(("tenant" = String, Path)),
    request_body = api::DataQuota, responses((status = 200, body = api::DataList))
)]
async fn quota(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(tenant): Params<Name>,
    Body(quota): Body<api::DataQuota>,
) -> Answer<Json<api::DataList>> {
    daemon.data_quota(&actor, &tenant, quota).await?;
    Ok(Json(daemon.data_list(&tenant).await?))
}

/// Give the space of what was cleared and cut back to the host now, rather than by and by.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data-compact", tag = "data", params(("tenant" = String, Path)),
    responses((status = 200, body = api::DataCompacted))
)]
async fn compact(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(tenant): Params<Name>,
) -> Answer<Json<api::DataCompacted>> {
    Ok(Json(daemon.data_compact(&actor, &tenant).await?))
}

/// One core, bee, drive or trie.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)), responses((status = 200, body = api::Data))
)]
async fn show(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Json<api::Data>> {
    Ok(Json(daemon.data_show(&tenant, &name).await?))
}

/// Remove it from this host. What peers have of it stays with them.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/data/{name}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)), responses((status = 200, body = api::Data))
)]
async fn remove(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Json<api::Data>> {
    let data = daemon.data_show(&tenant, &name).await?;
    daemon.data_remove(&actor, &tenant, &name).await?;
    Ok(Json(data))
}

/// What another peer needs to take part. It holds the key that reads it.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/share", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)), responses((status = 200, body = api::DataShare))
)]
async fn share(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Json<api::DataShare>> {
    Ok(Json(daemon.data_share(&actor, &tenant, &name).await?))
}

/// Go on after the history that its key has signed elsewhere, as peers have proved it; then it can be written again.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data/{name}/catch-up", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)), responses((status = 200, body = api::Data))
)]
async fn catch_up(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Json<api::Data>> {
    Ok(Json(daemon.data_catch_up(&actor, &tenant, &name).await?))
}

/// Read every block and compare it with the signed tree. What is damaged is asked for again from peers.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data/{name}/verify", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = api::DataVerified))
)]
async fn verify(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Json<api::DataVerified>> {
    Ok(Json(daemon.data_verify(&tenant, &name).await?))
}

/// Who is connected just now.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/peers", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = api::DataPeerList))
)]
async fn peers(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Json<api::DataPeerList>> {
    Ok(Json(daemon.data_peers(&tenant, &name).await?))
}

/// Connect to a peer on the overlay, and stay connected.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data/{name}/peers", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)), request_body = api::DataPeerAdd,
    responses((status = 200, body = api::DataPeerList))
)]
async fn peer_add(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
    Body(peer): Body<api::DataPeerAdd>,
) -> Answer<Json<api::DataPeerList>> {
    daemon.data_peer_add(&actor, &tenant, &name, peer).await?;
    Ok(Json(daemon.data_peers(&tenant, &name).await?))
}
