//! A client of the API: blocking calls over the daemon's unix socket.
//!
//! Invariants: every call ends, within its time limit, with the answer or a `Problem`; a daemon that cannot be reached
//! is always `Kind::Unavailable`, with the way to start it. Path segments need no escaping, for every `Name` is a DNS
//! label. Not to be called from inside an async runtime: each call blocks its thread.

mod data;

pub use data::{Sink, check_key};

use crate::{
    Accepted, App, AppInstall, AppList, Device, DeviceAdd, DeviceAdded, DeviceList, Doctor, Exec, ExecOutput,
    LogQuery, Machine, MachineList, Operation, OperationList, OperationQuery, ProblemBody, Status, Tenant,
    TenantAdd, TenantList,
};
use cloudpal_model::{Kind, Name, OperationId, Problem};
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, runtime::Runtime};

/// Where the daemon listens when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/cloudpal/api.sock";
/// The environment variable that says otherwise.
pub const SOCKET_ENV: &str = "CLOUDPAL_SOCKET";

/// For calls that only ask the control loop.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// For a command in a guest, which may have to wake up first and may be emulated.
const EXEC_TIMEOUT: Duration = Duration::from_secs(600);
/// A daemon that answers with more than this is not ours.
const MAX_ANSWER_BYTES: usize = 64 << 20;

pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, Problem> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Problem::io("starting the client", &error))?;
        Ok(Client { socket: socket.into(), runtime })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn status(&self) -> Result<Status, Problem> {
        self.get("/v1/status")
    }

    pub fn doctor(&self) -> Result<Doctor, Problem> {
        self.get("/v1/doctor")
    }

    /// The OpenAPI document, as the daemon serves it.
    pub fn openapi(&self) -> Result<serde_json::Value, Problem> {
        self.get("/v1/openapi.json")
    }

    pub fn tenants(&self) -> Result<TenantList, Problem> {
        self.get("/v1/tenants")
    }

    pub fn tenant(&self, name: &Name) -> Result<Tenant, Problem> {
        self.get(&format!("/v1/tenants/{name}"))
    }

    pub fn tenant_add(&self, add: &TenantAdd) -> Result<Accepted, Problem> {
        self.post("/v1/tenants", Some(add), CALL_TIMEOUT)
    }

    pub fn tenant_remove(&self, name: &Name) -> Result<Accepted, Problem> {
        self.delete(&format!("/v1/tenants/{name}"))
    }

    pub fn devices(&self, tenant: &Name) -> Result<DeviceList, Problem> {
        self.get(&format!("/v1/tenants/{tenant}/devices"))
    }

    pub fn device(&self, tenant: &Name, device: &Name) -> Result<Device, Problem> {
        self.get(&format!("/v1/tenants/{tenant}/devices/{device}"))
    }

    pub fn device_add(&self, tenant: &Name, add: &DeviceAdd) -> Result<DeviceAdded, Problem> {
        self.post(&format!("/v1/tenants/{tenant}/devices"), Some(add), CALL_TIMEOUT)
    }

    pub fn device_revoke(&self, tenant: &Name, device: &Name) -> Result<Accepted, Problem> {
        self.delete(&format!("/v1/tenants/{tenant}/devices/{device}"))
    }

    pub fn apps(&self, tenant: &Name) -> Result<AppList, Problem> {
        self.get(&format!("/v1/tenants/{tenant}/apps"))
    }

    pub fn app(&self, tenant: &Name, app: &Name) -> Result<App, Problem> {
        self.get(&format!("/v1/tenants/{tenant}/apps/{app}"))
    }

    pub fn app_install(&self, tenant: &Name, install: &AppInstall) -> Result<Accepted, Problem> {
        self.post(&format!("/v1/tenants/{tenant}/apps"), Some(install), CALL_TIMEOUT)
    }

    pub fn app_remove(&self, tenant: &Name, app: &Name) -> Result<Accepted, Problem> {
        self.delete(&format!("/v1/tenants/{tenant}/apps/{app}"))
    }

    pub fn machines(&self) -> Result<MachineList, Problem> {
        self.get("/v1/machines")
    }

    pub fn machine_usage(&self, tenant: &Name, app: &Name) -> Result<Machine, Problem> {
        self.get(&format!("/v1/tenants/{tenant}/apps/{app}/machine"))
    }

    pub fn machine_start(&self, tenant: &Name, app: &Name) -> Result<Accepted, Problem> {
        self.post::<(), _>(&format!("/v1/tenants/{tenant}/apps/{app}/machine/start"), None, CALL_TIMEOUT)
    }

    pub fn machine_sleep(&self, tenant: &Name, app: &Name) -> Result<Accepted, Problem> {
        self.post::<(), _>(&format!("/v1/tenants/{tenant}/apps/{app}/machine/sleep"), None, CALL_TIMEOUT)
    }

    pub fn machine_stop(&self, tenant: &Name, app: &Name) -> Result<Accepted, Problem> {
        self.post::<(), _>(&format!("/v1/tenants/{tenant}/apps/{app}/machine/stop"), None, CALL_TIMEOUT)
    }

    pub fn machine_exec(&self, tenant: &Name, app: &Name, exec: &Exec) -> Result<ExecOutput, Problem> {
        self.post(&format!("/v1/tenants/{tenant}/apps/{app}/machine/exec"), Some(exec), EXEC_TIMEOUT)
    }

    pub fn operations(&self, query: OperationQuery) -> Result<OperationList, Problem> {
        let limit = query.limit.map(|limit| format!("?limit={limit}")).unwrap_or_default();
        self.get(&format!("/v1/operations{limit}"))
    }

    pub fn operation(&self, id: OperationId) -> Result<Operation, Problem> {
        self.get(&format!("/v1/operations/{}", id.0))
    }

    /// Hands the log to `sink` piece by piece. With `follow` it ends only when the daemon goes down, the app is
    /// removed, or `sink` fails (a broken pipe is no problem: the reader has seen enough).
    pub fn logs(
        &self,
        tenant: &Name,
        app: &Name,
        query: LogQuery,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Problem> {
        let mut path = format!("/v1/tenants/{tenant}/apps/{app}/logs?follow={}", query.follow);
        if let Some(tail_bytes) = query.tail_bytes {
            path.push_str(&format!("&tail_bytes={tail_bytes}"));
        }
        self.runtime.block_on(async {
            let response =
                limited(CALL_TIMEOUT, &path, self.send(Method::GET, &path, whole(Bytes::new()))).await?;
            if !response.status().is_success() {
                return Err(limited(CALL_TIMEOUT, &path, refusal(response)).await?);
            }
            let mut body = response.into_body();
            loop {
                let frame = match query.follow {
                    true => body.frame().await,
                    false => limited(CALL_TIMEOUT, &path, async { Ok(body.frame().await) }).await?,
                };
                let Some(frame) = frame else { return Ok(()) };
                let frame = frame.map_err(|error| broken(&path, &error))?;
                let Some(bytes) = frame.data_ref() else { continue };
                match sink(bytes) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => return Err(Problem::io("writing the log", &error)),
                }
            }
        })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::GET, path, Bytes::new(), CALL_TIMEOUT)
    }

    fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::DELETE, path, Bytes::new(), CALL_TIMEOUT)
    }

    fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&B>,
        timeout: Duration,
    ) -> Result<T, Problem> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| {
                Problem::new(
                    Kind::Internal,
                    format!("writing the request {path}: {error}"),
                    "report it as a bug",
                )
            })?,
            None => Vec::new(),
        };
        self.call(Method::POST, path, body.into(), timeout)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<T, Problem> {
        self.runtime.block_on(limited(timeout, path, async {
            let json = !body.is_empty();
            let response = self.send_as(method, path, whole(body), json).await?;
            if !response.status().is_success() {
                return Err(refusal(response).await?);
            }
            let bytes = collect(response, path).await?;
            serde_json::from_slice(&bytes).map_err(|error| not_understood(path, &error))
        }))
    }

    /// One connection per request: a unix socket costs nothing, and no connection goes stale.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: BoxBody<Bytes, io::Error>,
    ) -> Result<Response<Incoming>, Problem> {
        self.send_as(method, path, body, false).await
    }

    async fn send_as(
        &self,
        method: Method,
        path: &str,
        body: BoxBody<Bytes, io::Error>,
        json: bool,
    ) -> Result<Response<Incoming>, Problem> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(path, &error))?;
        // Ends by itself with the connection; its error reaches us through the sender.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "cloudpal")
            .header(header::CONNECTION, "close");
        if json {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(body).map_err(|error| {
            Problem::new(Kind::Internal, format!("making the request {path}: {error}"), "report it as a bug")
        })?;
        sender.send_request(request).await.map_err(|error| broken(path, &error))
    }

    fn unreachable(&self, error: &io::Error) -> Problem {
        let socket = self.socket.display();
        let start = format!("start it with `cloudpald`, or name its socket with --socket or {SOCKET_ENV}");
        let (what, mend) = match error.kind() {
            io::ErrorKind::NotFound => (format!("no daemon: {socket} does not exist"), start),
            io::ErrorKind::ConnectionRefused => (format!("no daemon: nobody listens on {socket}"), start),
            io::ErrorKind::PermissionDenied => {
                let mend = "run it as root, or as the user who runs cloudpald".to_owned();
                (format!("{socket}: permission denied"), mend)
            }
            _ => (format!("{socket}: {error}"), start),
        };
        Problem::new(Kind::Unavailable, what, mend)
    }
}

fn whole(body: Bytes) -> BoxBody<Bytes, io::Error> {
    Full::new(body).map_err(|never| match never {}).boxed()
}

async fn limited<T>(
    timeout: Duration,
    path: &str,
    call: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|_elapsed| {
        let what = format!("the daemon did not answer {path} within {} s", timeout.as_secs());
        Err(Problem::new(
            Kind::Unavailable,
            what,
            "see the daemon's log; `cloudpal status` shows whether it answers at all",
        ))
    })
}

/// The problem in an answer that is not a success. `Err` when even that cannot be read.
async fn refusal(response: Response<Incoming>) -> Result<Problem, Problem> {
    let status = response.status();
    let bytes = collect(response, "the problem").await?;
    Ok(match serde_json::from_slice::<ProblemBody>(&bytes) {
        Ok(body) => body.into(),
        Err(error) => not_understood(&format!("status {status}"), &error),
    })
}

async fn collect(response: Response<Incoming>, path: &str) -> Result<Bytes, Problem> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    Ok(body.collect().await.map_err(|error| broken(path, &*error))?.to_bytes())
}

fn broken(path: &str, error: &dyn std::error::Error) -> Problem {
    let what = format!("the daemon broke off while answering {path}: {error}");
    Problem::new(Kind::Unavailable, what, "see the daemon's log, then try again")
}

fn not_understood(place: &str, error: &serde_json::Error) -> Problem {
    let what = format!("the daemon's answer to {place} is not understood: {error}");
    Problem::new(Kind::Internal, what, "use a cloudpal and a cloudpald of the same version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_socket_names_the_way_to_start_the_daemon() {
        let problem = Client::new("/nonexistent/api.sock").unwrap().status().unwrap_err();
        assert_eq!(problem.kind, Kind::Unavailable);
        assert!(problem.what.contains("/nonexistent/api.sock"), "{problem}");
        assert!(problem.mend.contains("cloudpald"), "{problem}");
    }
}
