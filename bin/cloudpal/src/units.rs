//! Sizes, durations and moments, as people write and read them.
//!
//! Invariant: a number without its unit is refused, except 0 for a duration: nobody has to guess whether 30 means
//! seconds.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::{SystemTime, UNIX_EPOCH},
};

const SIZES: [(&str, u64); 5] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
const DURATIONS_MS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// `64KiB` is 65536.
pub fn bytes(text: &str) -> Result<u64, String> {
    let example = "write for example 512KiB, 256MiB or 8GiB";
    let (number, unit) = split(text, example)?;
    let factor = SIZES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let factor = factor.ok_or_else(|| match unit {
        "" => format!("it has no unit; {example}"),
        _ => format!("{unit:?} is not a unit of size; {example}"),
    })?;
    number.checked_mul(factor).ok_or_else(|| "it is too large".to_owned())
}

/// `8GiB` is 8192. Whole MiB, and not none.
pub fn mib(text: &str) -> Result<u32, String> {
    let bytes = bytes(text)?;
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) {
        return Err("it must be a whole number of MiB, at least 1MiB".to_owned());
    }
    u32::try_from(bytes >> 20).map_err(|_| "it is too large".to_owned())
}

/// `30s` is 30000; `0` and `never` are 0.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let example = "write for example 500ms, 30s, 5m, 2h, or never";
    if text == "never" || text == "0" {
        return Ok(0);
    }
    let (number, unit) = split(text, example)?;
    let factor = DURATIONS_MS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let factor = factor.ok_or_else(|| match unit {
        "" => format!("it has no unit; {example}"),
        _ => format!("{unit:?} is not a unit of time; {example}"),
    })?;
    number.checked_mul(factor).ok_or_else(|| "it is too long".to_owned())
}

fn split<'t>(text: &'t str, example: &str) -> Result<(u64, &'t str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.is_empty() {
        return Err(format!("it does not start with a whole number; {example}"));
    }
    let number = number.parse().map_err(|_| "the number is too large".to_owned())?;
    Ok((number, unit.trim_start()))
}

/// `10.77.0.0` or `10.77.0.0/16`
pub fn subnet_v4(text: &str) -> Result<Ipv4Addr, String> {
    let address = text.strip_suffix("/16").unwrap_or(text);
    address.parse().map_err(|_| "it is not the address of a /16, for example 10.77.0.0".to_owned())
}

/// `fd12:3456:789a:1::` or `fd12:3456:789a:1::/64`
pub fn prefix_v6(text: &str) -> Result<Ipv6Addr, String> {
    let address = text.strip_suffix("/64").unwrap_or(text);
    address.parse().map_err(|_| "it is not the prefix of a /64, for example fd12:3456:789a:1::".to_owned())
}

pub fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ => {
            let (unit, factor) = SIZES[..4]
                .iter()
                .rev()
                .find(|(_, factor)| bytes >= *factor)
                .copied()
                .unwrap_or(("KiB", 1 << 10));
            format!("{:.1} {unit}", bytes as f64 / factor as f64)
        }
    }
}

/// The shortest exact writing that [`duration_ms`] reads back.
pub fn show_duration_ms(duration_ms: u64) -> String {
    if duration_ms == 0 {
        return "never".to_owned();
    }
    let fits = |&&(_, factor): &&(&str, u64)| duration_ms.is_multiple_of(factor);
    let (unit, factor) = DURATIONS_MS.iter().rev().find(fits).copied().unwrap_or(("ms", 1));
    format!("{}{unit}", duration_ms / factor)
}

pub fn show_us(duration_us: u64) -> String {
    match duration_us {
        0..1000 => format!("{duration_us} us"),
        1000..1_000_000 => format!("{:.1} ms", duration_us as f64 / 1e3),
        _ => format!("{:.2} s", duration_us as f64 / 1e6),
    }
}

/// How long ago a moment was: `12s ago`.
pub fn show_ago(wall_ms: u64) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    show_span(now_ms.saturating_sub(wall_ms))
}

fn show_span(span_ms: u64) -> String {
    let seconds = span_ms / 1000;
    match seconds {
        0..1 => "now".to_owned(),
        1..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        7200..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_and_say_so() {
        assert_eq!(mib("256MiB"), Ok(256));
        assert_eq!(mib("8GiB"), Ok(8192));
        assert_eq!(bytes("64 KiB"), Ok(65536));
        for (bad, why) in [
            ("256", "no unit"),
            ("256MB", "\"MB\""),
            ("MiB", "whole number"),
            ("0MiB", "at least"),
            ("1KiB", "whole"),
        ] {
            let error = mib(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(mib("99999999999TiB").is_err());
        assert!(bytes("99999999999999999999B").is_err());
    }

    #[test]
    fn durations_are_read_and_written_alike() {
        for text in ["500ms", "30s", "5m", "2h", "3d", "never"] {
            assert_eq!(show_duration_ms(duration_ms(text).unwrap()), text);
        }
        assert_eq!(duration_ms("0"), Ok(0));
        for bad in ["", "30", "s", "-1s", "1.5s", "30sec"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments_and_bytes_are_short() {
        assert_eq!(show_span(90_000), "90s ago");
        assert_eq!(show_span(7_300_000), "2h ago");
        assert_eq!(show_bytes(1023), "1023 B");
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_bytes(3 << 30), "3.0 GiB");
    }

    #[test]
    fn networks_with_and_without_their_length() {
        assert_eq!(subnet_v4("10.77.0.0/16"), subnet_v4("10.77.0.0"));
        assert!(subnet_v4("10.77.0.0/24").is_err());
        assert_eq!(prefix_v6("fd00::/64"), prefix_v6("fd00::"));
    }
}
