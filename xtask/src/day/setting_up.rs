//! A tenant, a device, an app: everything that has to be typed, and never again.

use super::{APP, Day, TENANT};
use crate::world::assert_private;
use anyhow::Result;

pub fn play(day: &mut Day) -> Result<()> {
    let cli = day.cli();
    let conf = day.world.phones[0].conf().to_string_lossy().into_owned();
    let image = format!("oci:{}", day.image.display());
    day.timeline.time("`tenant add ada`", || cli.json(&["tenant", "add", TENANT]))?;
    day.timeline.time("`device add ada phone` writes the profile, mode 600", || {
        cli.json(&["device", "add", TENANT, "phone", "--conf", &conf])?;
        assert_private(day.world.phones[0].conf())
    })?;
    let install = ["app", "install", TENANT, APP, &image, "--idle", &day.idle, "--memory", "256MiB"];
    day.timeline.time("`app install ada calendar`: Radicale's image is imported", || cli.json(&install))?;
    let phone = &mut day.world.phones[0];
    day.timeline.time("the phone's wg-quick takes the profile as it is", || phone.connect())
}
