//! `cargo xtask bench replication`: whole cores over TCP on loopback, between ours and the JavaScript stack in all four
//! pairings, interleaved, medians over the rounds. Both write what they receive to their own storage; neither syncs.

use super::table::{self, Row};
use crate::{paths, peers, shell};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub struct Options {
    /// How often each pairing is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Keep the figures in this file, too.
    #[arg(long, value_name = "FILE", default_value = "target/bench-replication.json")]
    json: PathBuf,
}

struct Work {
    name: &'static str,
    blocks: u64,
    bytes: u64,
    /// Ours to ours must be so many times as fast as JavaScript to JavaScript.
    target: f64,
}

const WORKS: [Work; 2] = [
    Work { name: "100,000 x 100 B", blocks: 100_000, bytes: 100, target: 10.0 },
    Work { name: "4,000 x 64 KiB", blocks: 4_000, bytes: 65_536, target: 5.0 },
];

/// A program that answers in lines of JSON; it ends when this is dropped.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

/// How long a program may take to end by itself, and to remove the files that it has made.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

impl Program {
    fn start(program: &str, arguments: &[&str], dir: &Path) -> Result<Self> {
        let mut command = shell::command(program, arguments);
        command.env("TMPDIR", work_dir()).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let stdin = Some(child.stdin.take().context("no standard input")?);
        let lines = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Program { child, stdin, lines })
    }

    fn javascript() -> Result<Self> {
        Program::start("node", &["peer.js", "11"], &golden())
    }

    fn hear(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("a peer of the benchmark has failed")?;
        if let Some(error) = answer.get("error") {
            bail!("a peer of the benchmark has failed: {error}");
        }
        Ok(answer)
    }

    fn ask(&mut self, command: Value) -> Result<Value> {
        writeln!(self.stdin.as_mut().context("no standard input")?, "{command}")?;
        self.hear()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Each ends when there is nothing more to be told; one that is killed leaves its files behind.
        drop(self.stdin.take());
        let started = Instant::now();
        while started.elapsed() < ENDS_WITHIN && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where all of them keep their files; one that has to be killed leaves some.
fn work_dir() -> PathBuf {
    paths::target().join("bench-replication")
}

fn golden() -> PathBuf {
    paths::root().join("core/data/golden")
}

/// Who serves, and where.
struct Server {
    _program: Program,
    port: u64,
    key: String,
}

fn serve_ours(ours: &str, work: &Work) -> Result<Server> {
    let (blocks, bytes) = (work.blocks.to_string(), work.bytes.to_string());
    let mut program = Program::start(ours, &["serve", &blocks, &bytes], &paths::root())?;
    let told = program.hear()?;
    let (port, key) = (number(&told, "port")? as u64, text(&told, "key")?);
    Ok(Server { _program: program, port, key })
}

fn serve_javascript(work: &Work) -> Result<Server> {
    let mut program = Program::javascript()?;
    let told = program.ask(json!({"do": "open", "core": "a", "seed": 1}))?;
    let append = json!({"do": "append", "core": "a", "start": 0, "count": work.blocks, "size": work.bytes});
    program.ask(append)?;
    let port = number(&program.ask(json!({"do": "listen"}))?, "port")? as u64;
    Ok(Server { _program: program, port, key: text(&told, "key")? })
}

/// Blocks per second.
fn fetch_ours(ours: &str, from: &Server, work: &Work) -> Result<f64> {
    let (port, blocks) = (from.port.to_string(), work.blocks.to_string());
    let mut program = Program::start(ours, &["fetch", &port, &from.key, &blocks], &paths::root())?;
    Ok(work.blocks as f64 / number(&program.hear()?, "ms")? * 1000.0)
}

fn fetch_javascript(from: &Server, work: &Work) -> Result<f64> {
    let mut program = Program::javascript()?;
    program.ask(json!({"do": "open", "core": "a", "key": from.key}))?;
    program.ask(json!({"do": "dial", "port": from.port}))?;
    let told = program.ask(json!({"do": "download", "core": "a", "start": 0, "end": work.blocks}))?;
    Ok(work.blocks as f64 / number(&told, "ms")? * 1000.0)
}

fn number(told: &Value, field: &str) -> Result<f64> {
    told[field].as_f64().with_context(|| format!("a peer of the benchmark tells no {field}"))
}

fn text(told: &Value, field: &str) -> Result<String> {
    Ok(told[field].as_str().with_context(|| format!("a peer of the benchmark tells no {field}"))?.to_owned())
}

pub fn run(options: &Options) -> Result<()> {
    peers::install()?;
    println!("building the peer of ours");
    shell::run(&mut shell::cargo(&["build", "--release", "-p", "cloudpal-host", "--example", "data_peer"]))?;
    let ours = paths::target().join("release/examples/data_peer");
    let ours = ours.to_str().context("the path of the working tree is no text")?;
    fs::create_dir_all(work_dir()).context("cannot make the directory of the benchmark")?;
    let measured = WORKS.iter().map(|work| measure(ours, work, options.rounds)).collect::<Result<Vec<_>>>();
    fs::remove_dir_all(work_dir()).context("cannot remove the directory of the benchmark")?;
    let rows: Vec<Row> = measured?.into_iter().flatten().collect();
    println!("\n{} rounds, medians, interleaved\n", options.rounds);
    table::print(&rows);
    let kept = json!({"bench": "replication", "rounds": options.rounds, "rows": rows});
    fs::write(&options.json, serde_json::to_string_pretty(&kept)? + "\n")
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    println!("\nkept in {}", options.json.display());
    Ok(())
}

fn measure(ours: &str, work: &Work, rounds: u32) -> Result<Vec<Row>> {
    let (our_server, their_server) = (serve_ours(ours, work)?, serve_javascript(work)?);
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 1..=rounds {
        rates[0].push(fetch_javascript(&their_server, work)?);
        rates[1].push(fetch_ours(ours, &our_server, work)?);
        rates[2].push(fetch_javascript(&our_server, work)?);
        rates[3].push(fetch_ours(ours, &their_server, work)?);
        println!("  {}: {round} of {rounds} rounds", work.name);
    }
    let [theirs, both, to_them, to_us] = rates.map(median);
    let row = |pairing: &str, rate: f64, target: f64| rate_row(work, pairing, rate, theirs, target);
    Ok(vec![
        row("ours to ours", both, work.target),
        row("ours to JS", to_them, 1.0),
        row("JS to ours", to_us, 1.0),
    ])
}

fn rate_row(work: &Work, pairing: &str, rate: f64, theirs: f64, target: f64) -> Row {
    let small = work.bytes < 4096;
    let scale = if small { 1e-3 } else { work.bytes as f64 / 1e6 };
    let unit = if small { "k/s" } else { "MB/s" };
    let mut row = Row::new(&format!("{}, {pairing}", work.name), rate * scale, unit);
    let ratio = (rate / theirs * 100.0).round() / 100.0;
    row.peer = Some(format!("JS to JS; target is the ratio, {target}"));
    row.peer_value = Some((theirs * scale * 100.0).round() / 100.0);
    (row.ratio, row.target, row.met) = (Some(ratio), Some(target), Some(ratio >= target));
    row
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}
