//! A tenant's WireGuard: in the kernel where the module is there, else in this process. The same behaviour.
//!
//! Invariants: the encrypted socket lies in the daemon's own namespace, the interface in the tenant's; a change of one
//! peer does not disturb the sessions of the others.

pub mod kernel;
pub mod userspace;

use async_trait::async_trait;
use cloudpal_model::{Kind, Problem};
use cloudpal_net::plan::{DevicePlan, NetPlan, PeerStatus};
use std::{io, net::IpAddr};

/// One tenant's WireGuard interface, which exists already.
#[async_trait]
pub trait WireGuard: Send + Sync {
    /// Makes key, port and peers match the plan. A new peer that was seen before is called where it was seen.
    async fn apply(&self, plan: &NetPlan) -> Result<(), Problem>;

    async fn peers(&self) -> Result<Vec<PeerStatus>, Problem>;

    /// It still moves packets. `false`: it must be made anew.
    fn is_alive(&self) -> bool;

    /// Ends it and frees its port.
    async fn stop(&self);
}

/// The inner addresses that the device may use, and only it.
fn allowed(device: &DevicePlan) -> [IpAddr; 2] {
    [device.v4.into(), device.v6.into()]
}

fn port_problem(port: u16, error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::AddrInUse {
        let what = format!("the UDP port {port} is taken by another program");
        let mend = format!(
            "see who has it with `ss -lunp 'sport = :{port}'` and end it, or give the tenant another port"
        );
        return Problem::new(Kind::Taken, what, mend);
    }
    Problem::io(format_args!("opening the UDP port {port}"), error)
}
