//! `…/data-export` and `…/data-import`: all of a tenant's data, from one host to another.

use super::{
    super::{
        Daemon,
        caller::Actor,
        refusal::{Answer, Params},
    },
    cores::raw,
    uploads::Upload,
};
use axum::{Json, extract::State, response::Response};
use cloudpal_api as api;
use cloudpal_model::Name;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(export)).routes(routes!(import))
}

/// All data of the tenant, with the keys to read it and to write on: a row of files in frames, which
/// docs/formats/export.md describes.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data-export", tag = "data", params(("tenant" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream", body = String))
)]
async fn export(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(tenant): Params<Name>,
) -> Answer<Response> {
    Ok(raw(daemon.data_export(&actor, &tenant).await?))
}

/// Take in an export, all of it or nothing. Each block is compared with its signed tree.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data-import", tag = "data", params(("tenant" = String, Path)),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 200, body = api::DataImported))
)]
async fn import(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(tenant): Params<Name>,
    body: axum::body::Body,
) -> Answer<Json<api::DataImported>> {
    let upload = Upload::new(body);
    let outcome = daemon.data_import(&actor, &tenant, upload.pieces()).await;
    Ok(Json(upload.told(outcome).await?))
}
