//! `…/data/{name}/cursors`: a core as a bus, with a place in it kept for each consumer.

use super::super::{
    Daemon,
    refusal::{Answer, Body, Params},
};
use axum::{Json, extract::State};
use cloudpal_api as api;
use cloudpal_model::Name;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(one, put))
}

/// Where a consumer is. One that is not known yet is at the first block.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/cursors/{consumer}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), ("consumer" = String, Path)),
    responses((status = 200, body = api::DataCursor))
)]
async fn one(
    State(daemon): State<Daemon>,
    Params((tenant, name, consumer)): Params<(Name, Name, Name)>,
) -> Answer<Json<api::DataCursor>> {
    Ok(Json(daemon.cursor(&tenant, &name, &consumer).await?))
}

/// What comes before is consumed, and does not come again.
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/data/{name}/cursors/{consumer}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), ("consumer" = String, Path)),
    request_body = api::DataCursorMove, responses((status = 200, body = api::DataCursor))
)]
async fn put(
    State(daemon): State<Daemon>,
    Params((tenant, name, consumer)): Params<(Name, Name, Name)>,
    Body(to): Body<api::DataCursorMove>,
) -> Answer<Json<api::DataCursor>> {
    Ok(Json(daemon.cursor_move(&tenant, &name, &consumer, to).await?))
}
