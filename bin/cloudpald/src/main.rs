//! The daemon's process: settings, log, socket, signals.

use clap::Parser;
use cloudpald::{daemon::Daemon, serve, settings::Settings};
use std::{io::IsTerminal, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};

/// gotatun reports every packet to a device that was never seen as an error; it is none.
const DEFAULT_LOG: &str = "info,gotatun=off";

fn main() -> ExitCode {
    let settings = Settings::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("CLOUDPAL_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(DEFAULT_LOG)),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: the async runtime could not start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(settings));
    // An import that still reads or writes is begun again at the next start.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<(), cloudpal_model::Problem> {
    let signals =
        |kind| signal(kind).map_err(|e| cloudpal_model::Problem::io("installing a signal handler", &e));
    let (mut interrupt, mut terminate) =
        (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
    let daemon = Daemon::start(settings).await?;
    let server = serve::start(&daemon)?;
    tracing::info!(socket = %daemon.places.socket().display(), "ready");
    tokio::select! {
        _ = interrupt.recv() => tracing::info!("interrupted"),
        _ = terminate.recv() => tracing::info!("asked to end"),
    }
    server.abort();
    daemon.stop().await;
    let _ = std::fs::remove_file(daemon.places.socket());
    tracing::info!("ended");
    Ok(())
}

/// Each tenant and each sleeping app costs a few descriptors; the usual soft limit of 1024 is some hundred tenants.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
