//! `cloudpal status` and `cloudpal doctor`

use crate::{exit, screen::Screen, tenant};
use cloudpal_api::Client;
use cloudpal_model::{Kind, Problem};
use std::process::ExitCode;

pub const STATUS_HELP: &str = "\
Examples:
  cloudpal status
  cloudpal status --json | jq '.tenants[].apps[] | select(.state == \"asleep\") | .name'

Exit codes: 0 done, 9 no daemon.";

pub const DOCTOR_HELP: &str = "\
Example:
  cloudpal doctor

Exit codes: 0 all is well, 7 something is missing, 9 no daemon.";

pub fn status(client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    screen.answer(&client.status()?, |status| {
        let mut text = format!("cloudpald {} on {}\n", status.version, client.socket().display());
        for tenant in &status.tenants {
            text.push_str(&format!("\n{}", tenant::describe(tenant)));
        }
        if status.tenants.is_empty() {
            text.push_str("no tenants yet; `cloudpal tenant add NAME` makes one\n");
        }
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

pub fn doctor(client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    let doctor = client.doctor()?;
    screen.answer(&doctor, |doctor| {
        let mut text = String::new();
        for check in &doctor.checks {
            let mark = if check.ok { "ok  " } else { "FAIL" };
            text.push_str(&format!("{mark} {}: {}\n", check.name, check.found));
            if !check.ok && !check.mend.is_empty() {
                text.push_str(&format!("     mend: {}\n", check.mend));
            }
        }
        crate::screen::printable(&text)
    })?;
    Ok(if doctor.ok { ExitCode::SUCCESS } else { exit::code(Kind::HostLacks) })
}
