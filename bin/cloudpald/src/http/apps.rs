//! `/v1/tenants/{tenant}/apps`

use super::{
    Credentials, Daemon,
    caller::Actor,
    log::Tail,
    refusal::{Answer, Body, Params, Query},
    wire,
};
use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use cloudpal_api as api;
use cloudpal_control::request::{AppKind, AppManifest, Request};
use cloudpal_model::{Kind, Name, Problem};
use utoipa_axum::{router::OpenApiRouter, routes};

/// How much of a log is sent when nobody says, bytes.
const DEFAULT_TAIL_BYTES: u64 = 65_536;

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new().routes(routes!(list, install)).routes(routes!(show, remove)).routes(routes!(logs))
}

/// The tenant's apps.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/apps", tag = "app", params(("tenant" = String, Path)),
    responses((status = 200, body = api::AppList))
)]
async fn list(State(daemon): State<Daemon>, Params(tenant): Params<Name>) -> Answer<Json<api::AppList>> {
    let view = daemon.view().await?;
    let tenant = wire::find_tenant(&view, &tenant)?;
    Ok(Json(api::AppList { apps: tenant.apps.iter().map(|app| wire::app(app, &tenant.domain)).collect() }))
}

/// Install an app: import its image and make its machine. Watch the operation for how it goes.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/apps", tag = "app", params(("tenant" = String, Path)),
    request_body = api::AppInstall, responses((status = 202, body = api::Accepted))
)]
async fn install(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params(tenant): Params<Name>,
    Body(install): Body<api::AppInstall>,
) -> Answer<Response> {
    let api::AppInstall { name, manifest, registry_username, registry_password } = install;
    let credentials = match (registry_username, registry_password) {
        (None, None) => None,
        (Some(username), Some(password)) => {
            Some(Credentials { username, password: password.reveal().to_owned() })
        }
        _ => {
            let what = "registry_username and registry_password belong together, and one is missing";
            return Err(Problem::new(Kind::Invalid, what, "give both, or neither").into());
        }
    };
    let accepted = daemon.app_install(&actor, tenant, name, with_defaults(manifest), credentials).await?;
    Ok(wire::accepted(&accepted))
}

fn with_defaults(manifest: api::Manifest) -> AppManifest {
    let default = AppManifest::new(manifest.image);
    let kind = match manifest.kind {
        None | Some(api::AppKind::Container) => AppKind::Container,
        Some(api::AppKind::Unikernel) => AppKind::Unikernel,
    };
    AppManifest {
        kind,
        memory_mib: manifest.memory_mib.unwrap_or(default.memory_mib),
        vcpus: manifest.vcpus.unwrap_or(default.vcpus),
        disk_mib: manifest.disk_mib.unwrap_or(default.disk_mib),
        idle_timeout_ms: manifest.idle_timeout_ms.unwrap_or(default.idle_timeout_ms),
        argv: manifest.argv,
        env: manifest.env,
        ready_tcp_ports: manifest.ready_tcp_ports,
        ..default
    }
}

/// One app.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/apps/{app}", tag = "app",
    params(("tenant" = String, Path), ("app" = String, Path)), responses((status = 200, body = api::App))
)]
async fn show(
    State(daemon): State<Daemon>,
    Params((tenant, app)): Params<(Name, Name)>,
) -> Answer<Json<api::App>> {
    let view = daemon.view().await?;
    let tenant = wire::find_tenant(&view, &tenant)?;
    Ok(Json(wire::app(wire::find_app(tenant, &app)?, &tenant.domain)))
}

/// Remove an app, with its machine, its disk and its log.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/apps/{app}", tag = "app",
    params(("tenant" = String, Path), ("app" = String, Path)), responses((status = 200, body = api::Accepted))
)]
async fn remove(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Response> {
    Ok(wire::accepted(&daemon.request(&actor, Request::AppRemove { tenant, name }).await?))
}

/// What the app wrote to stdout and stderr, as it wrote it.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/apps/{app}/logs", tag = "app",
    params(("tenant" = String, Path), ("app" = String, Path), api::LogQuery),
    responses((status = 200, content_type = "text/plain", body = String))
)]
async fn logs(
    State(daemon): State<Daemon>,
    Params((tenant, app)): Params<(Name, Name)>,
    Query(query): Query<api::LogQuery>,
) -> Answer<Response> {
    let path = daemon.log_file(&tenant, &app).await?;
    let tail = Tail::open(path, query.tail_bytes.unwrap_or(DEFAULT_TAIL_BYTES)).await?;
    let body = match query.follow {
        false => tail.rest(),
        // A removed app's log ends; asking again tells.
        true => tail.follow(move || {
            let (daemon, tenant, app) = (daemon.clone(), tenant.clone(), app.clone());
            async move { daemon.log_file(&tenant, &app).await.ok() }
        }),
    };
    // Untrusted bytes: a browser must not take them for a page.
    let headers =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, body).into_response())
}
