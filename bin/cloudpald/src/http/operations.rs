//! `/v1/operations`

use super::{
    Daemon,
    refusal::{Answer, Params, Query},
    wire,
};
use axum::{Json, extract::State};
use cloudpal_api as api;
use cloudpal_model::{Kind, OperationId, Problem};
use utoipa_axum::{router::OpenApiRouter, routes};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 1000;

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show))
}

/// The operation log, newest first.
#[utoipa::path(
    get, path = "/v1/operations", tag = "operation", params(api::OperationQuery),
    responses((status = 200, body = api::OperationList))
)]
async fn list(
    State(daemon): State<Daemon>,
    Query(query): Query<api::OperationQuery>,
) -> Answer<Json<api::OperationList>> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let operations = daemon.operations(limit).await?.into_iter().map(wire::operation).collect();
    Ok(Json(api::OperationList { operations }))
}

/// One operation.
#[utoipa::path(
    get, path = "/v1/operations/{id}", tag = "operation", params(("id" = u32, Path)),
    responses((status = 200, body = api::Operation))
)]
async fn show(State(daemon): State<Daemon>, Params(id): Params<u32>) -> Answer<Json<api::Operation>> {
    let operation = daemon.operation(OperationId(id)).await?.ok_or_else(|| {
        let mend = "`cloudpal operation list` shows those that exist";
        Problem::new(Kind::NotFound, format!("there is no operation {id}"), mend)
    })?;
    Ok(Json(wire::operation(operation)))
}
