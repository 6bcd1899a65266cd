//! `…/data/{name}/blocks`: a core as a log.

use super::super::{
    Daemon,
    caller::Actor,
    data_backend::Pieces,
    refusal::{Answer, Block, Body, Params, Query},
};
use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use cloudpal_api as api;
use cloudpal_model::{Name, Problem};
use futures_util::StreamExt;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(list, append)).routes(routes!(one)).routes(routes!(cut))
}

/// Blocks one after the other, each with its length before it (4 bytes, little-endian).
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/blocks", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), api::BlockQuery),
    responses((status = 200, content_type = "application/octet-stream", body = String))
)]
async fn list(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
    Query(query): Query<api::BlockQuery>,
) -> Answer<Response> {
    let blocks = daemon.core_blocks(&tenant, &name, query).await?;
    let framed: Pieces =
        Box::pin(blocks.map(|block| {
            block.map(|block| [&(block.len() as u32).to_le_bytes()[..], &block].concat().into())
        }));
    Ok(raw(framed))
}

/// Append the body as one block.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data/{name}/blocks", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 200, body = api::DataVersion))
)]
async fn append(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
    Block(block): Block,
) -> Answer<Json<api::DataVersion>> {
    Ok(Json(daemon.core_append(&tenant, &name, vec![block]).await?))
}

/// One block.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/blocks/{index}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), ("index" = u64, Path)),
    responses((status = 200, content_type = "application/octet-stream", body = String))
)]
async fn one(
    State(daemon): State<Daemon>,
    Params((tenant, name, index)): Params<(Name, Name, u64)>,
) -> Answer<Response> {
    let block = daemon.core_block(&tenant, &name, index).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], block).into_response())
}

/// Cut a core to its first blocks, which makes a new fork, or clear blocks, which forgets their content here.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data/{name}/cut", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)), request_body = api::BlockCut,
    responses((status = 200, body = api::DataVersion))
)]
async fn cut(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
    Body(cut): Body<api::BlockCut>,
) -> Answer<Json<api::DataVersion>> {
    Ok(Json(daemon.core_cut(&actor, &tenant, &name, cut).await?))
}

/// Content that is nobody's page: a browser must not take it for one.
pub fn raw(pieces: Pieces) -> Response {
    let body = axum::body::Body::from_stream(
        pieces.map(|piece| piece.map_err(|problem: Problem| std::io::Error::other(problem.to_string()))),
    );
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, body).into_response()
}
