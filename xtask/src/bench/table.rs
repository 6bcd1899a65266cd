//! Rows of figures, each beside its peer's and its target.

use serde::Serialize;
use std::time::Duration;

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub peer: Option<String>,
    pub peer_value: Option<f64>,
    /// Ours divided by the peer's.
    pub ratio: Option<f64>,
    pub target: Option<f64>,
    pub met: Option<bool>,
}

impl Row {
    pub fn ms(name: &str, value: Duration) -> Row {
        Row::new(name.trim_start(), value.as_secs_f64() * 1000.0, "ms")
    }

    pub fn new(name: &str, value: f64, unit: &'static str) -> Row {
        let (peer, peer_value, ratio, target, met) = (None, None, None, None, None);
        Row { name: name.to_owned(), value: rounded(value), unit, peer, peer_value, ratio, target, met }
    }

    pub fn peer(mut self, name: &str, value: Duration) -> Row {
        let value_ms = value.as_secs_f64() * 1000.0;
        self.peer = Some(name.to_owned());
        self.peer_value = Some(rounded(value_ms));
        self.ratio = (value_ms > 0.0).then(|| rounded(self.value / value_ms));
        self
    }

    pub fn target_ms(self, target: u32) -> Row {
        self.at_most(f64::from(target))
    }

    /// The target is the most that the ratio to the peer may be; without a peer there is none.
    pub fn at_most_of_peer(mut self, target: f64) -> Row {
        self.target = self.ratio.map(|_| target);
        self.met = self.ratio.map(|ratio| ratio <= target);
        self
    }

    pub fn at_most(mut self, target: f64) -> Row {
        self.target = Some(target);
        self.met = Some(self.value <= target);
        self
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Small figures would be lost in one decimal.
fn shown(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

pub fn print(rows: &[Row]) {
    println!("  {:<46} {:>10} {:>4}  {:>9}  {:>6}  {:>8}  peer", "", "value", "", "peer", "ratio", "target");
    for row in rows {
        let number = |value: Option<f64>| value.map_or_else(String::new, shown);
        let verdict = match row.met {
            Some(true) => " met",
            Some(false) => " MISSED",
            None => "",
        };
        println!(
            "  {:<46} {:>10} {:>4}  {:>9}  {:>6}  {:>8}  {}{verdict}",
            row.name,
            shown(row.value),
            row.unit,
            number(row.peer_value),
            number(row.ratio),
            number(row.target),
            row.peer.as_deref().unwrap_or_default(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_knows_its_ratio_and_whether_its_target_is_met() {
        let row =
            Row::ms("a", Duration::from_millis(300)).peer("b", Duration::from_millis(200)).target_ms(250);
        assert_eq!((row.ratio, row.met), (Some(1.5), Some(false)));
        assert_eq!(Row::ms("a", Duration::from_millis(3)).at_most(3.0).met, Some(true));
    }
}
