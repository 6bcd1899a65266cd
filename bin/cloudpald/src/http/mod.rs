//! The HTTP API: axum routes over a [`Backend`], described by the OpenAPI document that they are registered with.
//!
//! Invariants: a route exists only together with its description; every answer that is not a success is a problem (RFC
//! 9457); a request body has at most 1 MiB (a block 15 MiB, a file any length) and no
//! unknown fields; a change carries the user id of who asked for it.

mod apps;
mod backend;
mod caller;
mod data;
mod data_backend;
mod devices;
mod host;
mod log;
mod machines;
mod operations;
mod refusal;
mod tenants;
mod wire;

pub use backend::Backend;
pub use caller::Caller;
pub use cloudpal_api::Check;
pub use cloudpal_host::image::Credentials;
pub use data::entry_key;
pub use data_backend::{Content, DataBackend, Part, Pieces};
pub use wire::operation as shown_operation;

use axum::{Extension, Router, body::Bytes, extract::DefaultBodyLimit};
use std::{io, sync::Arc};
use tokio::net::UnixListener;
use utoipa::{
    OpenApi,
    openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder},
};
use utoipa_axum::router::OpenApiRouter;

type Daemon = Arc<dyn Backend>;

/// The OpenAPI document, written out once.
#[derive(Clone)]
struct Document(Bytes);

#[derive(OpenApi)]
#[openapi(
    info(title = "CloudPal", description = "One person's always-on device in the cloud: the daemon's API."),
    components(schemas(cloudpal_api::ProblemBody))
)]
struct Description;

fn described() -> (Router<Daemon>, utoipa::openapi::OpenApi) {
    let (router, mut api) = OpenApiRouter::with_openapi(Description::openapi())
        .merge(host::routes())
        .merge(tenants::routes())
        .merge(devices::routes())
        .merge(apps::routes())
        .merge(machines::routes())
        .merge(operations::routes())
        .merge(data::routes())
        .split_for_parts();
    describe_problems(&mut api);
    (router, api)
}

/// Any operation can fail, and all fail in the same words.
fn describe_problems(api: &mut utoipa::openapi::OpenApi) {
    let schema = Ref::from_schema_name("ProblemBody");
    let problem = ResponseBuilder::new()
        .description("Why it was not done, and what to do about it (RFC 9457).")
        .content(cloudpal_api::ProblemBody::CONTENT_TYPE, ContentBuilder::new().schema(Some(schema)).build())
        .build();
    for item in api.paths.paths.values_mut() {
        for operation in
            [&mut item.get, &mut item.post, &mut item.put, &mut item.delete].into_iter().flatten()
        {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(problem.clone()));
        }
    }
}

pub fn router(backend: Arc<dyn Backend>) -> Router {
    let (router, api) = described();
    // The document is plain data without maps of odd keys; should it ever not be JSON, the tests see an empty one.
    let document = Document(serde_json::to_vec_pretty(&api).unwrap_or_default().into());
    router
        .fallback(refusal::no_such_path)
        .method_not_allowed_fallback(refusal::no_such_method)
        .layer(Extension(document))
        .layer(DefaultBodyLimit::max(refusal::MAX_BODY_BYTES))
        .with_state(backend)
}

/// Serves until the task is dropped. Who asks is taken from the socket itself.
pub async fn serve(listener: UnixListener, router: Router) -> io::Result<()> {
    axum::serve(listener, router.into_make_service_with_connect_info::<Caller>()).await
}
