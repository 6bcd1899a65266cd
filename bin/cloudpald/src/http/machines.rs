//! `/v1/machines` and `/v1/tenants/{tenant}/apps/{app}/machine`

use super::{
    Daemon,
    caller::Actor,
    refusal::{Answer, Body, Params},
    wire,
};
use axum::{Json, extract::State, response::Response};
use cloudpal_api as api;
use cloudpal_control::{
    request::Request,
    view::{AppView, TenantView},
};
use cloudpal_model::{Kind, Name, Problem};
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes() -> OpenApiRouter<Daemon> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(usage))
        .routes(routes!(start))
        .routes(routes!(sleep))
        .routes(routes!(stop))
        .routes(routes!(exec))
}

/// Every machine of this host, and what it uses.
#[utoipa::path(get, path = "/v1/machines", tag = "machine", responses((status = 200, body = api::MachineList)))]
async fn list(State(daemon): State<Daemon>) -> Answer<Json<api::MachineList>> {
    let view = daemon.view().await?;
    let mut machines = Vec::new();
    for tenant in &view.tenants {
        for app in &tenant.apps {
            match machine(&daemon, tenant, app).await {
                // Removed while we looked.
                Err(problem) if problem.kind == Kind::NotFound => {}
                machine => machines.push(machine?),
            }
        }
    }
    Ok(Json(api::MachineList { machines }))
}

async fn machine(daemon: &Daemon, tenant: &TenantView, app: &AppView) -> Result<api::Machine, Problem> {
    let (pid, usage) = daemon.usage(&tenant.name, &app.name).await?.unzip();
    let usage = usage.unwrap_or_default();
    Ok(api::Machine {
        id: app.machine,
        tenant: tenant.name.clone(),
        app: app.name.clone(),
        state: app.state.clone(),
        pid,
        cpu_us: usage.cpu_us,
        resident_kib: usage.resident_kib,
    })
}

/// What the app's machine uses.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/apps/{app}/machine", tag = "machine",
    params(("tenant" = String, Path), ("app" = String, Path)), responses((status = 200, body = api::Machine))
)]
async fn usage(
    State(daemon): State<Daemon>,
    Params((tenant, app)): Params<(Name, Name)>,
) -> Answer<Json<api::Machine>> {
    let view = daemon.view().await?;
    let tenant = wire::find_tenant(&view, &tenant)?;
    Ok(Json(machine(&daemon, tenant, wire::find_app(tenant, &app)?).await?))
}

/// Wake or boot the machine now. Also lifts a stop.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/apps/{app}/machine/start", tag = "machine",
    params(("tenant" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = api::Accepted), (status = 202, body = api::Accepted))
)]
async fn start(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Response> {
    Ok(wire::accepted(&daemon.request(&actor, Request::MachineStart { tenant, name }).await?))
}

/// Put the machine to sleep now, without waiting for the idle time.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/apps/{app}/machine/sleep", tag = "machine",
    params(("tenant" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = api::Accepted), (status = 202, body = api::Accepted))
)]
async fn sleep(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Response> {
    Ok(wire::accepted(&daemon.request(&actor, Request::MachineSleep { tenant, name }).await?))
}

/// Stop the machine. Packets do not start it again until it is started.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/apps/{app}/machine/stop", tag = "machine",
    params(("tenant" = String, Path), ("app" = String, Path)),
    responses((status = 200, body = api::Accepted), (status = 202, body = api::Accepted))
)]
async fn stop(
    State(daemon): State<Daemon>,
    Actor(actor): Actor,
    Params((tenant, name)): Params<(Name, Name)>,
) -> Answer<Response> {
    Ok(wire::accepted(&daemon.request(&actor, Request::MachineStop { tenant, name }).await?))
}

/// Run a command inside the guest and wait for its end.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/apps/{app}/machine/exec", tag = "machine",
    params(("tenant" = String, Path), ("app" = String, Path)), request_body = api::Exec,
    responses((status = 200, body = api::ExecOutput))
)]
async fn exec(
    State(daemon): State<Daemon>,
    Params((tenant, app)): Params<(Name, Name)>,
    Body(exec): Body<api::Exec>,
) -> Answer<Json<api::ExecOutput>> {
    if exec.argv.first().is_none_or(String::is_empty) {
        return Err(
            Problem::new(Kind::Invalid, "argv names no command", "give at least the command's name").into()
        );
    }
    let output = daemon.exec(&tenant, &app, exec.argv).await?;
    Ok(Json(api::ExecOutput::new(output.code, &output.output, output.truncated)))
}
