//! Requests about devices.
//!
//! Invariant: a device's private key leaves in the answer and stays nowhere.

use crate::{
    engine::Engine,
    operations::Draft,
    records::{self, DeviceRecord},
    request::{Accepted, DeviceProfile},
    settings::MAX_DEVICES,
};
use cloudpal_model::{DeviceId, Kind, Name, Now, Problem, store::Store};
use cloudpal_net::{
    address::Range,
    keys::{self, KeyPair},
    plan::DevicePlan,
    profile,
};

impl<S: Store> Engine<S> {
    pub(crate) fn device_add(
        &mut self,
        now: Now,
        actor: &str,
        tenant_name: &Name,
        name: Name,
        exit: bool,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Accepted, Problem> {
        let tenant = self.household.tenant(tenant_name)?;
        self.household.name_is_free(tenant, &name)?;
        let tenant_id = tenant.record.id;
        let slot = Range::Devices.lowest_free_slot(tenant.devices.values().map(|device| device.slot));
        let (Some(slot), true) = (slot, tenant.devices.len() < MAX_DEVICES) else {
            let what = format!("tenant {tenant_name} has {MAX_DEVICES} devices, and takes no more");
            return Err(Problem::new(Kind::Refused, what, "revoke a device that is no longer used"));
        };
        let (mut key, mut preshared) = ([0; 32], [0; 32]);
        random(&mut key);
        random(&mut preshared);
        let pair = KeyPair::from_random(key);

        let what = format!("device add {tenant_name}/{name}");
        let mut draft = self.draft(now, actor, what, format!("device revoke {tenant_name}/{name}"));
        draft.operation.tenant = Some(tenant_id);
        let record = DeviceRecord {
            id: DeviceId(Draft::next(&mut draft.meta.next_device)),
            tenant: tenant_id,
            name: name.clone(),
            slot,
            public_key: pair.public,
            preshared_key: keys::preshared_key(preshared),
            exit,
            last_endpoint: None,
            added_wall_ms: now.wall_ms,
        };
        let (v4, v6) = tenant.device_address(slot);
        let device = DevicePlan {
            id: record.id,
            name: name.clone(),
            public_key: record.public_key,
            preshared_key: record.preshared_key.clone(),
            v4,
            v6,
            exit,
            last_endpoint: None,
        };
        let conf = profile::conf(&self.household.plan(tenant), &device, &pair.private, &self.endpoint)?;
        draft.put(records::DEVICE, record.id.0, &record)?;
        let operation = self.commit(draft)?;
        if let Some(tenant) = self.household.tenants.get_mut(&tenant_id) {
            tenant.devices.insert(name, record);
        }
        self.net_changed(tenant_id);
        Ok(Accepted::DeviceAdded { operation, profile: DeviceProfile { private_key: pair.private, conf } })
    }

    pub(crate) fn device_revoke(
        &mut self,
        now: Now,
        actor: &str,
        tenant_name: &Name,
        name: &Name,
    ) -> Result<Accepted, Problem> {
        let tenant = self.household.tenant(tenant_name)?;
        let tenant_id = tenant.record.id;
        let Some(device) = tenant.devices.get(name) else {
            let mend = format!("`cloudpal device list {tenant_name}` shows those that exist");
            return Err(Problem::new(
                Kind::NotFound,
                format!("tenant {tenant_name} has no device {name}"),
                mend,
            ));
        };
        let mut draft = self.draft(now, actor, format!("device revoke {tenant_name}/{name}"), String::new());
        draft.operation.tenant = Some(tenant_id);
        draft.delete(records::DEVICE, device.id.0);
        let operation = self.commit(draft)?;
        if let Some(tenant) = self.household.tenants.get_mut(&tenant_id) {
            tenant.devices.remove(name);
        }
        self.net_changed(tenant_id);
        Ok(Accepted::Done { operation })
    }
}
