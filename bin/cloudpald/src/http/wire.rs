//! From the control loop's view to the wire's words.

use super::refusal::Refusal;
use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use cloudpal_api as api;
use cloudpal_control::{
    request::Accepted,
    view::{AppView, DeviceView, OperationState, OperationView, TenantView, View},
};
use cloudpal_model::{Kind, Name, OperationId, Problem};
use cloudpal_net::plan::PeerStatus;

pub fn tenant(view: &TenantView, peers: &[PeerStatus]) -> api::Tenant {
    api::Tenant {
        id: view.id,
        name: view.name.clone(),
        domain: view.domain.clone(),
        subnet_v4: view.subnet_v4,
        prefix_v6: view.prefix_v6,
        dns_v4: view.dns_v4,
        public_key: view.public_key,
        listen_port: view.listen_port,
        network_trouble: view.network_trouble.clone(),
        devices: view.devices.iter().map(|view| device(view, peers)).collect(),
        apps: view.apps.iter().map(|app_view| app(app_view, &view.domain)).collect(),
    }
}

pub fn device(view: &DeviceView, peers: &[PeerStatus]) -> api::Device {
    let peer = peers.iter().find(|peer| peer.public_key == view.public_key);
    api::Device {
        id: view.id,
        name: view.name.clone(),
        v4: view.v4,
        v6: view.v6,
        public_key: view.public_key,
        exit: view.exit,
        added_wall_ms: view.added_wall_ms,
        endpoint: peer.and_then(|peer| peer.endpoint).or(view.last_endpoint),
        last_handshake_wall_ms: peer.and_then(|peer| peer.last_handshake_wall_ms),
        received_bytes: peer.map_or(0, |peer| peer.received_bytes),
        sent_bytes: peer.map_or(0, |peer| peer.sent_bytes),
    }
}

pub fn app(view: &AppView, domain: &str) -> api::App {
    api::App {
        name: view.name.clone(),
        host_name: format!("{}.{domain}", view.name),
        machine: view.machine,
        image: view.image.clone(),
        digest: view.digest.clone(),
        v4: view.v4,
        v6: view.v6,
        ports: view.ports.clone(),
        memory_mib: view.memory_mib,
        idle_timeout_ms: view.idle_timeout_ms,
        state: view.state.clone(),
        note: view.note.clone(),
        state_since_wall_ms: view.state_since_wall_ms,
        boots: view.boots,
        wakes: view.wakes,
        sleeps: view.sleeps,
        last_wake_us: view.last_wake_us,
    }
}

pub fn operation(view: OperationView) -> api::Operation {
    let (state, progress, problem) = match view.state {
        OperationState::Running { stage, done_bytes, total_bytes } => {
            (api::OperationState::Running, Some(api::Progress { stage, done_bytes, total_bytes }), None)
        }
        OperationState::Done => (api::OperationState::Done, None, None),
        OperationState::Failed { problem } => {
            (api::OperationState::Failed, None, Some(api::ProblemBody::new(problem)))
        }
    };
    api::Operation {
        id: view.id,
        actor: view.actor,
        what: view.what,
        undo: view.undo,
        at_wall_ms: view.at_wall_ms,
        state,
        progress,
        problem,
    }
}

/// 200 when it is done, 202 and where to look when it is under way.
pub fn accepted(accepted: &Accepted) -> Response {
    match accepted {
        Accepted::Done { operation } | Accepted::DeviceAdded { operation, .. } => {
            let body = api::Accepted { operation: *operation, done: true, machine: None };
            (StatusCode::OK, Json(body)).into_response()
        }
        Accepted::Started { operation, machine } => {
            let body = api::Accepted { operation: *operation, done: false, machine: Some(*machine) };
            (StatusCode::ACCEPTED, location(*operation), Json(body)).into_response()
        }
    }
}

fn location(operation: OperationId) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("/v1/operations/{}", operation.0)) {
        headers.insert(header::LOCATION, value);
    }
    headers
}

pub fn find_tenant<'v>(view: &'v View, name: &Name) -> Result<&'v TenantView, Refusal> {
    view.tenants.iter().find(|tenant| tenant.name == *name).ok_or_else(|| {
        let mend = "`cloudpal tenant list` shows those that exist";
        Problem::new(Kind::NotFound, format!("there is no tenant {name}"), mend).into()
    })
}

pub fn find_device<'v>(tenant: &'v TenantView, name: &Name) -> Result<&'v DeviceView, Refusal> {
    tenant.devices.iter().find(|device| device.name == *name).ok_or_else(|| {
        let tenant = &tenant.name;
        let mend = format!("`cloudpal device list {tenant}` shows those that exist");
        Problem::new(Kind::NotFound, format!("tenant {tenant} has no device {name}"), mend).into()
    })
}

pub fn find_app<'v>(tenant: &'v TenantView, name: &Name) -> Result<&'v AppView, Refusal> {
    tenant.apps.iter().find(|app| app.name == *name).ok_or_else(|| {
        let tenant = &tenant.name;
        let mend = format!("`cloudpal app list {tenant}` shows those that exist");
        Problem::new(Kind::NotFound, format!("tenant {tenant} has no app {name}"), mend).into()
    })
}
