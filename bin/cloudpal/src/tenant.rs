//! `cloudpal tenant`

use crate::{
    operation,
    screen::Screen,
    table::Table,
    units::{self, show_ago},
};
use clap::Subcommand;
use cloudpal_api::{Client, Tenant, TenantAdd};
use cloudpal_model::{Name, Problem};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    process::ExitCode,
};

#[derive(Subcommand)]
pub enum Verb {
    /// Make a tenant: its keys, its addresses, its network
    #[command(after_help = "\
Addresses that are not given are chosen. Two tenants may use the same: they never meet.

Examples:
  cloudpal tenant add ada
  cloudpal tenant add bob --subnet 10.77.0.0 --prefix fd12:3456:789a:1::

Exit codes: 0 done, 4 the name is taken, 5 a bad name or network, 9 no daemon.
With --json: the operation.")]
    Add {
        /// 1 to 63 of a-z, 0-9 and '-'; it becomes the domain NAME.pal
        name: Name,
        /// The address of a private IPv4 /16
        #[arg(long, value_name = "ADDRESS", value_parser = units::subnet_v4)]
        subnet: Option<Ipv4Addr>,
        /// The prefix of a unique local IPv6 /64
        #[arg(long, value_name = "PREFIX", value_parser = units::prefix_v6)]
        prefix: Option<Ipv6Addr>,
    },
    /// Every tenant of this host
    #[command(after_help = "Example:\n  cloudpal tenant list --json | jq -r '.tenants[].name'")]
    List,
    /// One tenant, with its devices and apps
    #[command(after_help = "Example:\n  cloudpal tenant show ada\n\nExit codes: 0 done, 3 no such tenant.")]
    Show {
        /// The tenant
        name: Name,
    },
    /// Remove a tenant and its devices
    #[command(after_help = "\
Example:
  cloudpal tenant remove ada

Exit codes: 0 done, 3 no such tenant, 5 it still has apps.
With --json: the operation.")]
    Remove {
        /// The tenant
        name: Name,
    },
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Add { name, subnet, prefix } => {
            let add = TenantAdd { name: name.clone(), subnet_v4: subnet, prefix_v6: prefix };
            let accepted = client.tenant_add(&add)?;
            let operation = operation::follow(client, screen, accepted.operation)?;
            let tenant = client.tenant(&name)?;
            screen.answer(&operation, |_| {
                format!(
                    "tenant {name} is there\n{}\nnext: cloudpal device add {name} phone",
                    summary(&tenant)
                )
            })?;
        }
        Verb::List => screen.answer(&client.tenants()?, |list| {
            let mut table = Table::new(["TENANT", "DOMAIN", "IPV4", "IPV6", "UDP PORT", "DEVICES", "APPS"]);
            for tenant in &list.tenants {
                table.row([
                    tenant.name.to_string(),
                    tenant.domain.clone(),
                    format!("{}/16", tenant.subnet_v4),
                    format!("{}/64", tenant.prefix_v6),
                    tenant.listen_port.to_string(),
                    tenant.devices.len().to_string(),
                    tenant.apps.len().to_string(),
                ]);
            }
            table
        })?,
        Verb::Show { name } => screen.answer(&client.tenant(&name)?, describe)?,
        Verb::Remove { name } => {
            let accepted = client.tenant_remove(&name)?;
            let operation = operation::follow(client, screen, accepted.operation)?;
            screen.answer(&operation, |_| format!("tenant {name} is removed"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(tenant: &Tenant) -> Table {
    let mut pairs = Table::pairs().indented(2);
    pairs.pair("domain", &tenant.domain);
    pairs.pair("addresses", format!("{}/16, {}/64", tenant.subnet_v4, tenant.prefix_v6));
    pairs.pair("dns", tenant.dns_v4);
    pairs.pair("wireguard", format!("UDP port {}, public key {}", tenant.listen_port, tenant.public_key));
    if !tenant.network_trouble.is_empty() {
        pairs.pair("trouble", &tenant.network_trouble);
    }
    pairs
}

/// A tenant with all that it has; also the lines of `status`.
pub fn describe(tenant: &Tenant) -> String {
    let mut text = format!("tenant {}\n{}", tenant.name, summary(tenant));
    if !tenant.devices.is_empty() {
        text.push_str(&format!("\n{}", crate::device::list(&tenant.devices).indented(2)));
    }
    if !tenant.apps.is_empty() {
        text.push_str(&format!("\n{}", crate::app::list(&tenant.apps).indented(2)));
    }
    for app in tenant.apps.iter().filter(|app| !app.note.is_empty()) {
        let note = crate::screen::printable(&app.note);
        text.push_str(&format!("  {}, {}: {note}\n", app.name, show_ago(app.state_since_wall_ms)));
    }
    text
}
