//! `…/data/{name}/files`: a drive as files and folders.

use super::{
    super::{
        Daemon,
        caller::Actor,
        data_backend::Part,
        refusal::{Answer, Body, Params, Query},
    },
    cores::raw,
    uploads::Upload,
};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use cloudpal_api as api;
use cloudpal_model::{Kind, Name, Problem};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(one, put, delete))
        .routes(routes!(history))
        .routes(routes!(purge))
}

/// What is in a folder.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/files", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), api::FileListQuery),
    responses((status = 200, body = api::FileList))
)]
async fn list(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
    Query(query): Query<api::FileListQuery>,
) -> Answer<Json<api::FileList>> {
    Ok(Json(daemon.files(&tenant, &name, query).await?))
}

/// A file's content, or the part that `Range: bytes=FIRST-LAST` asks for; links are followed.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/files/{*path}", tag = "data",
    params(
        ("tenant" = String, Path), ("name" = String, Path), ("path" = String, Path), api::VersionQuery
    ),
    responses((status = 200, content_type = "application/octet-stream", body = String),
              (status = 206, content_type = "application/octet-stream", body = String))
)]
async fn one(
    State(daemon): State<Daemon>,
    Params((tenant, name, path)): Params<(Name, Name, String)>,
    Query(query): Query<api::VersionQuery>,
    headers: HeaderMap,
) -> Answer<Response> {
    let part = headers.get(header::RANGE).map(part).transpose()?;
    let path = format!("/{path}");
    let content = daemon.file(&tenant, &name, &path, query.version, part).await?.ok_or_else(|| {
        let mend = format!("`cloudpal drive ls {tenant} {name}` shows what there is");
        Problem::new(Kind::NotFound, format!("{name} has no file {path}"), mend)
    })?;
    let mut response = raw(content.pieces);
    let (first, end) = match part {
        None => (0, content.total_bytes),
        Some((first, end)) => (first, end.unwrap_or(u64::MAX).min(content.total_bytes)),
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(end.saturating_sub(first)));
    if part.is_some() {
        if first >= end {
            let what = format!("{path} has {} bytes, and none at {first}", content.total_bytes);
            return Err(Problem::new(Kind::Invalid, what, "ask for a part that is there").into());
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {first}-{}/{}", end - 1, content.total_bytes);
        if let Ok(range) = HeaderValue::from_str(&range) {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    Ok(response)
}

/// `bytes=FIRST-` and `bytes=FIRST-LAST` (RFC 9110, section 14); other forms are refused.
fn part(range: &HeaderValue) -> Result<Part, Problem> {
    let parse = || {
        let (first, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let end = match last {
            "" => None,
            last => Some(last.parse::<u64>().ok()?.checked_add(1)?),
        };
        Some((first.parse().ok()?, end))
    };
    parse().ok_or_else(|| {
        Problem::new(
            Kind::Invalid,
            format!("the range {range:?} is not understood"),
            "write bytes=FIRST-LAST",
        )
    })
}

/// Write a file: the body is its content, however long.
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/data/{name}/files/{*path}", tag = "data",
    params(
        ("tenant" = String, Path), ("name" = String, Path), ("path" = String, Path), api::FileQuery
    ),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 200, body = api::DataVersion))
)]
async fn put(
    State(daemon): State<Daemon>,
    Params((tenant, name, path)): Params<(Name, Name, String)>,
    Query(query): Query<api::FileQuery>,
    body: axum::body::Body,
) -> Answer<Json<api::DataVersion>> {
    let upload = Upload::new(body);
    let outcome = daemon.file_put(&tenant, &name, &format!("/{path}"), query, upload.pieces()).await;
    Ok(Json(upload.told(outcome).await?))
}

/// Remove a file. Earlier versions of the drive still have it.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/data/{name}/files/{*path}", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), ("path" = String, Path)),
    responses((status = 200, body = api::DataVersion))
)]
async fn delete(
    State(daemon): State<Daemon>,
    Params((tenant, name, path)): Params<(Name, Name, String)>,
) -> Answer<Json<api::DataVersion>> {
    Ok(Json(daemon.file_delete(&tenant, &name, &format!("/{path}")).await?))
}

/// Every write, newest first; or, with `since`, what changed, each file once.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/data/{name}/file-history", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path), api::HistoryQuery),
    responses((status = 200, body = api::FileList))
)]
async fn history(
    State(daemon): State<Daemon>,
    Params((tenant, name)): Params<(Name, Name)>,
    Query(query): Query<api::HistoryQuery>,
) -> Answer<Json<api::FileList>> {
    Ok(Json(daemon.file_history(&tenant, &name, query).await?))
}

/// Give the space of contents back that no version from one on shows.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/data/{name}/file-purge", tag = "data",
    params(("tenant" = String, Path), ("name" = String, Path)), request_body = api::FilePurge,
    responses((status = 200, body = api::DataCompacted))
)]
async fn purge(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
    Body(purge): Body<api::FilePurge>,
) -> Answer<Json<api::DataCompacted>> {
    Ok(Json(daemon.file_purge(&actor, &tenant, &name, purge).await?))
}
