//! `/v1/tenants/{tenant}/devices`

use super::{
    Daemon,
    caller::Actor,
    refusal::{Answer, Body, Params},
    wire,
};
use axum::{Json, extract::State, http::StatusCode, response::Response};
use cloudpal_api as api;
use cloudpal_control::request::{Accepted, Request};
use cloudpal_model::{Kind, Name, Problem};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(show, revoke))
}

/// The tenant's devices.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/devices", tag = "device", params(("tenant" = String, Path)),
    responses((status = 200, body = api::DeviceList))
)]
async fn list(State(daemon): State<Daemon>, Params(tenant): Params<Name>) -> Answer<Json<api::DeviceList>> {
    let view = daemon.view().await?;
    let tenant = wire::find_tenant(&view, &tenant)?;
    let peers = daemon.peers(tenant.id).await;
    Ok(Json(api::DeviceList {
        devices: tenant.devices.iter().map(|device| wire::device(device, &peers)).collect(),
    }))
}

/// Add a device. The answer holds its private key, which is not kept and never shown again.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/devices", tag = "device", params(("tenant" = String, Path)),
    request_body = api::DeviceAdd, responses((status = 201, body = api::DeviceAdded))
)]
async fn add(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(tenant): Params<Name>,
    Body(add): Body<api::DeviceAdd>,
) -> Answer<(StatusCode, Json<api::DeviceAdded>)> {
    let api::DeviceAdd { name, exit } = add;
    match daemon.request(&actor, Request::DeviceAdd { tenant, name, exit }).await? {
        Accepted::DeviceAdded { operation, profile } => Ok((
            StatusCode::CREATED,
            Json(api::DeviceAdded { operation, conf: api::Secret::new(profile.conf) }),
        )),
        Accepted::Done { operation } | Accepted::Started { operation, .. } => {
            let what = format!("{operation} added the device but gave no profile");
            Err(Problem::new(Kind::Internal, what, "revoke the device and report this as a bug").into())
        }
    }
}

/// One device.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/devices/{device}", tag = "device",
    params(("tenant" = String, Path), ("device" = String, Path)), responses((status = 200, body = api::Device))
)]
async fn show(
    State(daemon): State<Daemon>,
    Params((tenant, device)): Params<(Name, Name)>,
) -> Answer<Json<api::Device>> {
    let view = daemon.view().await?;
    let tenant = wire::find_tenant(&view, &tenant)?;
    let device = wire::find_device(tenant, &device)?;
    Ok(Json(wire::device(device, &daemon.peers(tenant.id).await)))
}

/// Revoke a device: its next packet gets no answer.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/devices/{device}", tag = "device",
    params(("tenant" = String, Path), ("device" = String, Path)), responses((status = 200, body = api::Accepted))
)]
async fn revoke(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Response> {
    Ok(wire::accepted(&daemon.request(&actor, Request::DeviceRevoke { tenant, name }).await?))
}
