//! A problem as an HTTP answer, and axum's own refusals turned into problems.

use axum::{
    body::Bytes,
    extract::{
        FromRequest, FromRequestParts, Request,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use cloudpal_api::{MAX_BLOCK_BYTES, ProblemBody};
use cloudpal_model::{Kind, Problem};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

/// The longest request body, bytes.
pub const MAX_BODY_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub struct Refusal(ProblemBody);

pub type Answer<T> = Result<T, Refusal>;

impl Refusal {
    fn with_status(status: StatusCode, what: impl Into<String>, mend: &str) -> Self {
        Refusal(ProblemBody::with_status(status.as_u16(), Problem::new(Kind::Invalid, what, mend)))
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal(ProblemBody::new(problem))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self.0)).into_response();
        let kind = HeaderValue::from_static(ProblemBody::CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

const OPENAPI: &str = "see /v1/openapi.json for what the API understands";

pub async fn no_such_path(request: Request) -> Refusal {
    let what = format!("there is no path {}", request.uri().path());
    Problem::new(Kind::NotFound, what, OPENAPI).into()
}

pub async fn no_such_method(request: Request) -> Refusal {
    let what = format!("{} does not know the method {}", request.uri().path(), request.method());
    Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, what, OPENAPI)
}

/// A JSON request body.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Body(value)),
            Err(rejection) => Err(body_refusal(&rejection)),
        }
    }
}

fn body_refusal(rejection: &JsonRejection) -> Refusal {
    let what = rejection.body_text();
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let what = format!("the request body is longer than {MAX_BODY_BYTES} bytes");
            Refusal::with_status(StatusCode::PAYLOAD_TOO_LARGE, what, "send a shorter one")
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Refusal::with_status(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            what,
            "send Content-Type: application/json",
        ),
        _ => Refusal::with_status(StatusCode::BAD_REQUEST, what, OPENAPI),
    }
}

/// A body that is one block or value: as long as a block may be, which is more than other bodies.
pub struct Block(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Block {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let mut body = request.into_body().into_data_stream();
        let (mut block, mut too_long) = (Vec::new(), false);
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| {
                Refusal::with_status(
                    StatusCode::BAD_REQUEST,
                    format!("the body broke off: {error}"),
                    "send it again",
                )
            })?;
            // A little more is read all the same, so that the answer is heard.
            match block.len() + piece.len() {
                length if length > 2 * MAX_BLOCK_BYTES => break,
                length => too_long = length > MAX_BLOCK_BYTES,
            }
            block.extend_from_slice(&piece);
        }
        if too_long {
            let what = format!("the body is longer than {MAX_BLOCK_BYTES} bytes, as long as a block may be");
            return Err(Refusal::with_status(
                StatusCode::PAYLOAD_TOO_LARGE,
                what,
                "put it into a drive, as a file",
            ));
        }
        Ok(Block(block.into()))
    }
}

/// The variable parts of the path.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Params(value)),
            Err(rejection) => Err(path_refusal(&rejection)),
        }
    }
}

fn path_refusal(rejection: &PathRejection) -> Refusal {
    Refusal::with_status(StatusCode::BAD_REQUEST, rejection.body_text(), "correct the path of the request")
}

/// What follows the `?`.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Query(value)),
            Err(rejection) => Err(query_refusal(&rejection)),
        }
    }
}

fn query_refusal(rejection: &QueryRejection) -> Refusal {
    Refusal::with_status(StatusCode::BAD_REQUEST, rejection.body_text(), OPENAPI)
}
