//! Exit codes: stable, one per kind of problem.

use cloudpal_model::Kind;
use std::process::ExitCode;

pub const HELP: &str = "\
Exit codes:
  0  done
  1  a fault of CloudPal's own
  2  the command line is wrong
  3  there is no such tenant, device, app or operation
  4  the name, port or path is taken
  5  the request is wrong, or not allowed in the present state
  6  the image cannot be run or trusted
  7  the host lacks something; `cloudpal doctor` says what
  8  the disk is full
  9  the daemon cannot be reached
  (`cloudpal machine exec` ends with the exit code of the command that it ran)

Errors go to stderr, as `error: …` and `mend: …`, with --json as a problem object (RFC 9457).

Units: sizes are written 512KiB, 256MiB, 8GiB; durations 500ms, 30s, 5m, 2h.

Example, from nothing to an app on the phone:
  cloudpal tenant add ada
  cloudpal device add ada phone
  cloudpal app install ada radicale oci:./radicale:latest --port 5232";

pub fn code(kind: Kind) -> ExitCode {
    ExitCode::from(match kind {
        Kind::Internal => 1,
        Kind::NotFound => 3,
        Kind::Taken => 4,
        Kind::Refused | Kind::Invalid => 5,
        Kind::BadImage => 6,
        Kind::HostLacks => 7,
        Kind::DiskFull => 8,
        Kind::Unavailable => 9,
    })
}
