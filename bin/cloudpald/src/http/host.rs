//! `/healthz`, `/v1/status`, `/v1/doctor` and `/v1/openapi.json`

use super::{Daemon, Document, refusal::Answer, tenants};
use axum::{
    Extension, Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use cloudpal_api as api;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(status))
        .routes(routes!(doctor))
        .routes(routes!(openapi))
}

/// `ok` as long as the control loop answers.
#[utoipa::path(
    get, path = "/healthz", tag = "host", responses((status = 200, content_type = "text/plain", body = String))
)]
async fn healthz(State(daemon): State<Daemon>) -> Answer<&'static str> {
    daemon.view().await?;
    Ok("ok\n")
}

/// Everything at a glance.
#[utoipa::path(get, path = "/v1/status", tag = "host", responses((status = 200, body = api::Status)))]
async fn status(State(daemon): State<Daemon>) -> Answer<Json<api::Status>> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Json(api::Status { version, tenants: tenants::all(&daemon).await? }))
}

/// What CloudPal needs of its host, what was found, and the mend.
#[utoipa::path(get, path = "/v1/doctor", tag = "host", responses((status = 200, body = api::Doctor)))]
async fn doctor(State(daemon): State<Daemon>) -> Json<api::Doctor> {
    let checks = daemon.doctor().await;
    Json(api::Doctor { ok: checks.iter().all(|check| check.ok), checks })
}

/// This description.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "host",
    responses((status = 200, content_type = "application/json", body = serde_json::Value))
)]
async fn openapi(Extension(Document(text)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
