//! `…/data/{name}/entries`: a bee or a trie as a key-value store. Keys in a path are percent-encoded text, or with
//! `hex=true` hexadecimal digits: keys are any bytes.

use super::super::{
    Daemon,
    refusal::{Answer, Block, Params, Query},
};
use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use cloudpal_api as api;
use cloudpal_model::{Kind, Name, Problem};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(one, put, delete)).routes(routes!(history))
}

/// A key as it is kept.
pub fn bytes(key: &str, hex: bool) -> Result<Vec<u8>, Problem> {
    if !hex {
        return Ok(key.as_bytes().to_vec());
    }
    crate::data::unhex(key).ok_or_else(|| {
        let mend = "write two digits, 0 to 9 and a to f, for each byte";
        Problem::new(Kind::Invalid, format!("{key:?} is not hexadecimal"), mend)
    })
}

/// Entries in the order of their keys.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/entries", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), api::EntryQuery),
    responses((status = 200, body = api::EntryList))
)]
async fn list(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
    Query(query): Query<api::EntryQuery>,
) -> Answer<Json<api::EntryList>> {
    Ok(Json(daemon.entries(&tenant, &name, query).await?))
}

/// The value of a key, now or at a version.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/entries/{key}", tag = "data",
    params(
        ("tenant" = String, Path), ("name" = String, Path), ("key" = String, Path), api::VersionQuery
    ),
    responses((status = 200, content_type = "application/octet-stream", body = String))
)]
async fn one(
    State(daemon): State<Daemon>,
    Params((tenant, name, key)): Params<(Name, Name, String)>,
    Query(query): Query<api::VersionQuery>,
) -> Answer<Response> {
    let value = daemon.entry(&tenant, &name, &bytes(&key, query.hex)?, query.version).await?;
    let value = value.ok_or_else(|| {
        let mend = "`cloudpal bee ls` and `cloudpal trie ls` show the keys that exist";
        Problem::new(Kind::NotFound, format!("{name} has no key {key:?}"), mend)
    })?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], value).into_response())
}

/// Set a key to the body.
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/data/{name}/entries/{key}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), ("key" = String, Path), api::KeyQuery),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 200, body = api::DataVersion))
)]
async fn put(
    State(daemon): State<Daemon>,
    Params((tenant, name, key)): Params<(Name, Name, String)>,
    Query(query): Query<api::KeyQuery>,
    Block(value): Block,
) -> Answer<Json<api::DataVersion>> {
    Ok(Json(daemon.entry_put(&tenant, &name, &bytes(&key, query.hex)?, value).await?))
}

/// Delete a key. That it was not there is no error.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/data/{name}/entries/{key}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), ("key" = String, Path), api::KeyQuery),
    responses((status = 200, body = api::DataVersion))
)]
async fn delete(
    State(daemon): State<Daemon>,
    Params((tenant, name, key)): Params<(Name, Name, String)>,
    Query(query): Query<api::KeyQuery>,
) -> Answer<Json<api::DataVersion>> {
    Ok(Json(daemon.entry_delete(&tenant, &name, &bytes(&key, query.hex)?).await?))
}

/// Every write, newest first; or, with `since`, what changed, each key once.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/entry-history", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), api::HistoryQuery),
    responses((status = 200, body = api::EntryList))
)]
async fn history(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
    Query(query): Query<api::HistoryQuery>,
) -> Answer<Json<api::EntryList>> {
    Ok(Json(daemon.entry_history(&tenant, &name, query).await?))
}
