//! Who asks: the user id at the other end of the unix socket, as the kernel tells it (SO_PEERCRED).

use super::refusal::Refusal;
use axum::{
    extract::{ConnectInfo, FromRequestParts, connect_info::Connected},
    http::request::Parts,
    serve::IncomingStream,
};
use cloudpal_model::{Kind, Problem};
use tokio::net::UnixListener;

/// One connection's other end.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// `None`: the kernel did not tell.
    pub uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Caller { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

/// How the operation log names the caller: `cli:uid=0`.
pub struct Actor(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let uid = match ConnectInfo::<Caller>::from_request_parts(parts, state).await {
            Ok(ConnectInfo(caller)) => caller.uid,
            Err(_) => None,
        };
        match uid {
            Some(uid) => Ok(Actor(format!("cli:uid={uid}"))),
            // A change that nobody made would be a hole in the operation log.
            None => Err(Problem::new(
                Kind::Internal,
                "the kernel does not tell who asks",
                "send changes over the daemon's unix socket",
            )
            .into()),
        }
    }
}
