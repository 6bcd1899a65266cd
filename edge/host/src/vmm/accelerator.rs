//! What KVM is worth here: which accelerator to use, found by measuring rather than by the presence of a device file.
//!
//! Some hosts have a /dev/kvm that emulates every instruction: all its calls work, and a guest takes minutes to boot.
//! Invariant: the measurement runs twenty thousand instructions, so it takes milliseconds even there.
#![allow(unsafe_code)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use std::{
    fmt, fs,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Tcg,
    Kvm,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Tcg => "tcg",
            Accelerator::Kvm => "kvm",
        })
    }
}

const ROUNDS: u32 = 10_000;
/// Two instructions a round. Real hardware takes less than a nanosecond each, emulation more than a microsecond.
const MAX_REAL: Duration = Duration::from_millis(4);

/// The choice, and the sentence that explains it.
pub fn choose() -> (Accelerator, String) {
    match measure() {
        Ok(took) => {
            let each_ns = took.as_nanos() / u128::from(2 * ROUNDS);
            let figure = format!("a guest's instruction takes {each_ns} ns in /dev/kvm here");
            if took <= MAX_REAL {
                (Accelerator::Kvm, format!("kvm: {figure}"))
            } else {
                (Accelerator::Tcg, format!("tcg (software emulation, slow): {figure}, so KVM is not real"))
            }
        }
        Err(why) => (Accelerator::Tcg, format!("tcg (software emulation, slow): no usable KVM: {why}")),
    }
}

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// How long a guest of our own takes for a counted loop; the best of three, so that a busy host is not called slow.
fn measure() -> Result<Duration, String> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        best = best.min(run_loop().map_err(|error| error.to_string())?);
        if best <= MAX_REAL {
            break;
        }
    }
    Ok(best)
}

fn run_loop() -> Result<Duration, kvm_ioctls::Error> {
    // Real mode: mov ecx, ROUNDS; again: dec ecx; jnz again; hlt
    let mut code = vec![0x66, 0xb9];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0x66, 0x49, 0x75, 0xfc, 0xf4]);
    let mut page = Box::new(Page([0; 4096]));
    page.0[..code.len()].copy_from_slice(&code);

    let vm = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0x1000,
        memory_size: 4096,
        userspace_addr: std::ptr::from_mut(&mut *page) as u64,
    };
    // SAFETY: the page is aligned, exclusively ours, and outlives the VM: being declared first it is
    // dropped last.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs)?;
    let start = Instant::now();
    match vcpu.run()? {
        VcpuExit::Hlt => Ok(start.elapsed()),
        _ => Err(kvm_ioctls::Error::new(libc::EIO)),
    }
}

/// The host's CPU as a guest under KVM sees it: its model and which features it has.
pub fn host_cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = text.split("\n\n").next().unwrap_or_default();
    let value = |name: &str| {
        let mut values = first.lines().filter_map(|line| line.split_once(':'));
        values.find(|(key, _)| key.trim() == name).map_or("", |(_, value)| value.trim())
    };
    let model = ["vendor_id", "cpu family", "model", "stepping", "microcode"].map(value).join("/");
    format!("{model}/{:08x}", crc32c::crc32c(value("flags").as_bytes()))
}

/// Counts the host's time stamp counter against its clock: under software emulation the guest sees that counter, and
/// has no other clock precise enough to measure it with.
#[derive(Clone, Copy, Debug)]
pub struct CounterRate {
    start: Instant,
    start_ticks: u64,
}

impl CounterRate {
    pub fn start() -> CounterRate {
        let (start, start_ticks) = reading();
        CounterRate { start, start_ticks }
    }

    /// Ever more precise, the later it is asked.
    pub async fn khz(&self) -> u64 {
        const LEAST: Duration = Duration::from_millis(100);
        tokio::time::sleep(LEAST.saturating_sub(self.start.elapsed())).await;
        let (now, ticks) = reading();
        let elapsed_ns = (now - self.start).as_nanos().max(1);
        let khz = u128::from(ticks.wrapping_sub(self.start_ticks)) * 1_000_000 / elapsed_ns;
        u64::try_from(khz).unwrap_or(0)
    }
}

/// Both clocks at one moment: the least disturbed of a few tries.
fn reading() -> (Instant, u64) {
    let tries = (0..16).map(|_| {
        let before = ticks();
        let now = Instant::now();
        let after = ticks();
        (after.wrapping_sub(before), now, before.wrapping_add(after.wrapping_sub(before) / 2))
    });
    let best = tries.min_by_key(|&(gap, ..)| gap);
    best.map_or((Instant::now(), 0), |(_, now, ticks)| (now, ticks))
}

fn ticks() -> u64 {
    // SAFETY: reading the time stamp counter has no precondition on x86-64, where it always exists.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_has_a_reason() {
        let start = Instant::now();
        let (chosen, why) = choose();
        assert!(why.starts_with(&chosen.to_string()), "{why}");
        assert!(start.elapsed() < Duration::from_secs(10), "{why}");
    }

    #[test]
    fn the_hosts_cpu_has_a_name() {
        let cpu = host_cpu();
        assert!(cpu.split('/').count() == 6 && !cpu.starts_with('/') && !cpu.ends_with("/00000000"), "{cpu}");
    }

    #[tokio::test]
    async fn the_counter_is_a_plausible_clock() {
        let khz = CounterRate::start().khz().await;
        assert!((500_000..10_000_000).contains(&khz), "{khz} kHz");
    }
}
