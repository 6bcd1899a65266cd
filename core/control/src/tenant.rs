//! Requests about tenants.

use crate::{
    effect::Effect,
    engine::Engine,
    household::Tenant,
    operations::Draft,
    records::{self, TenantRecord},
    request::Accepted,
    settings::MAX_TENANTS,
};
use cloudpal_model::{
    Kind, Name, Now, Problem, TenantId,
    store::{Change, Store},
};
use cloudpal_net::{domain::Domain, keys::KeyPair, plan::Subnets};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

impl<S: Store> Engine<S> {
    pub(crate) fn tenant_add(
        &mut self,
        now: Now,
        actor: &str,
        name: Name,
        (subnet_v4, prefix_v6): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Accepted, Problem> {
        if self.household.tenant(&name).is_ok() {
            let what = format!("there is a tenant {name} already");
            return Err(Problem::new(Kind::Taken, what, "choose another name"));
        }
        if self.household.tenants.len() >= MAX_TENANTS {
            let what = format!("this host has {MAX_TENANTS} tenants, and takes no more");
            return Err(Problem::new(Kind::Refused, what, "remove a tenant, or use another host"));
        }
        let mut global_id = [0; 5];
        random(&mut global_id);
        let subnets = Subnets::choose(subnet_v4, prefix_v6, global_id)?;
        let domain = format!("{name}.{}", self.settings.domain_suffix).parse::<Domain>()?;
        let listen_port = self.free_port()?;
        let mut key = [0; 32];
        random(&mut key);

        let (what, undo) = (format!("tenant add {name}"), format!("tenant remove {name}"));
        let mut draft = self.draft(now, actor, what, undo);
        let id = TenantId(Draft::next(&mut draft.meta.next_tenant));
        draft.operation.tenant = Some(id);
        let record = TenantRecord {
            id,
            name,
            domain: domain.as_str().to_owned(),
            subnets,
            private_key: KeyPair::from_random(key).private,
            listen_port,
            added_wall_ms: now.wall_ms,
            leaving: false,
        };
        draft.put(records::TENANT, id.0, &record)?;
        let operation = self.commit(draft)?;
        self.household.tenants.insert(id, Tenant::new(record));
        self.net_changed(id);
        Ok(Accepted::Done { operation })
    }

    fn free_port(&self) -> Result<u16, Problem> {
        let used: BTreeSet<u16> =
            self.household.tenants.values().map(|tenant| tenant.record.listen_port).collect();
        let free = (self.settings.first_port.max(1)..=u16::MAX).find(|port| !used.contains(port));
        free.ok_or_else(|| {
            let what = format!("no UDP port from {} up is left for another tenant", self.settings.first_port);
            Problem::new(Kind::Refused, what, "remove a tenant, or start the daemon with a lower first port")
        })
    }

    /// Takes its devices along; not its apps, which hold the owner's data. Machines of apps that were just removed end
    /// first, and nobody needs to wait for them.
    pub(crate) fn tenant_remove(&mut self, now: Now, actor: &str, name: &Name) -> Result<Accepted, Problem> {
        let tenant = self.household.tenant(name)?;
        let id = tenant.record.id;
        if !tenant.apps.is_empty() || self.household.installs.values().any(|install| install.tenant == id) {
            let what = format!("tenant {name} still has apps, and their data would be lost");
            return Err(Problem::new(
                Kind::Refused,
                what,
                format!("remove them first: `cloudpal app list {name}`"),
            ));
        }
        let record = TenantRecord { leaving: true, ..tenant.record.clone() };
        let mut draft = self.draft(now, actor, format!("tenant remove {name}"), String::new());
        draft.operation.tenant = Some(id);
        draft.put(records::TENANT, id.0, &record)?;
        for device in tenant.devices.values() {
            draft.delete(records::DEVICE, device.id.0);
        }
        let operation = self.commit(draft)?;
        if let Some(tenant) = self.household.tenants.get_mut(&id) {
            tenant.record = record;
            tenant.devices.clear();
        }
        if !self.tenant_left(now, id) {
            self.net_changed(id);
        }
        Ok(Accepted::Done { operation })
    }

    /// Whether the tenant was removed and its last machine has ended: then its network and its data go.
    pub(crate) fn tenant_left(&mut self, now: Now, id: TenantId) -> bool {
        let left = |tenant: &Tenant| tenant.record.leaving && tenant.machines.is_empty();
        if !self.household.tenants.get(&id).is_some_and(left) {
            return false;
        }
        self.household.tenants.remove(&id);
        let gone = records::put(records::key(records::GONE_TENANT, id.0), &id);
        self.write_later(gone, now.mono_us);
        let key = records::key(records::TENANT, id.0);
        self.write_later(Ok(Change::Delete { key }), now.mono_us);
        self.effects.push(Effect::RemoveNet { tenant: id });
        true
    }
}
