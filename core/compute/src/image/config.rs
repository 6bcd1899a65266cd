//! What an image says of how it wants to be run.

use super::{digest::Digest, error::ImageError};
use oci_spec::image::{Arch, ImageConfiguration, Os};
use serde::{Deserialize, Serialize};

/// What ends an app gently when its image says nothing of it.
const SIGTERM: i32 = 15;

/// What the image says of how it wants to be run (OCI image-spec, `config`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub exposed_tcp_ports: Vec<u16>,
    pub stop_signal: i32,
}

impl ImageConfig {
    /// What to run: what the owner asked for, else the image's entrypoint with its command.
    pub fn argv(&self, asked: &[String]) -> Result<Vec<String>, ImageError> {
        if !asked.is_empty() {
            return Ok(asked.to_vec());
        }
        let argv: Vec<String> = self.entrypoint.iter().chain(&self.cmd).cloned().collect();
        match argv.first() {
            Some(program) if !program.is_empty() => Ok(argv),
            _ => Err(ImageError::NoEntrypoint),
        }
    }
}

/// Reads the configuration document: how to run the image, and the digests of its unpacked layers, lowest first.
pub fn parse(bytes: &[u8]) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
    let bad = |why: String| ImageError::BadDocument { document: "the image's configuration".to_owned(), why };
    let document: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if (document.os(), document.architecture()) != (&Os::Linux, &Arch::Amd64) {
        let found = format!("{}/{}", document.os(), document.architecture());
        return Err(ImageError::WrongPlatform { found });
    }
    if document.rootfs().typ() != "layers" {
        return Err(bad(format!("its rootfs has the type `{}`, not `layers`", document.rootfs().typ())));
    }
    let diff_ids = document.rootfs().diff_ids().iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
    let run = document.config().clone().unwrap_or_default();
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let config = ImageConfig {
        entrypoint: list(run.entrypoint()),
        cmd: list(run.cmd()),
        env: list(run.env()),
        cwd: text(run.working_dir()),
        user: text(run.user()),
        exposed_tcp_ports: tcp_ports(run.exposed_ports().iter().flatten().map(String::as_str)),
        stop_signal: match run.stop_signal().as_deref() {
            None | Some("") => SIGTERM,
            Some(name) => signal(name).ok_or_else(|| bad(format!("`{name}` is not a signal")))?,
        },
    };
    let all = [&config.entrypoint, &config.cmd, &config.env].into_iter().flatten();
    if all.chain([&config.cwd, &config.user]).any(|text| text.contains('\0')) {
        return Err(bad("it has a NUL character in an argument, variable or name".to_owned()));
    }
    Ok((config, diff_ids))
}

/// `8080/tcp` and `8080`; sorted. Other protocols and what is not a port are not for us.
fn tcp_ports<'a>(exposed: impl Iterator<Item = &'a str>) -> Vec<u16> {
    let port = |text: &str| text.strip_suffix("/tcp").unwrap_or(text).parse::<u16>().ok();
    let mut ports: Vec<u16> = exposed.filter_map(port).filter(|port| *port != 0).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// A Linux signal by number (`15`) or name (`SIGTERM`, `term`, `SIGRTMIN+3`).
fn signal(text: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    const REALTIME: std::ops::RangeInclusive<i32> = 34..=64;
    let any = 1..=64;
    if let Ok(number) = text.parse::<i32>() {
        return any.contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => *REALTIME.start(),
        (_, Some("")) => *REALTIME.end(),
        (Some(more), _) => REALTIME.start().checked_add(more.strip_prefix('+')?.parse().ok()?)?,
        (_, Some(less)) => REALTIME.end().checked_sub(less.strip_prefix('-')?.parse().ok()?)?,
        (None, None) => return NAMES.iter().position(|known| *known == name).map(|index| index as i32 + 1),
    };
    REALTIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(config: &str) -> Vec<u8> {
        let rootfs = r#"{"type":"layers","diff_ids":[]}"#;
        format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{rootfs},"config":{config}}}"#).into_bytes()
    }

    #[test]
    fn a_full_configuration() {
        let text = r#"{"Entrypoint":["/bin/app"],"Cmd":["--x"],"Env":["A=1"],"WorkingDir":"/d","User":"app:www",
            "ExposedPorts":{"8080/tcp":{},"53/udp":{},"80":{},"x":{}},"StopSignal":"SIGRTMIN+3"}"#;
        let (config, _) = parse(&document(text)).unwrap();
        assert_eq!(config.argv(&[]).unwrap(), ["/bin/app", "--x"]);
        assert_eq!(config.argv(&["sh".into()]).unwrap(), ["sh"]);
        assert_eq!(config.exposed_tcp_ports, [80, 8080]);
        assert_eq!((config.stop_signal, config.cwd.as_str(), config.user.as_str()), (37, "/d", "app:www"));
    }

    #[test]
    fn an_empty_configuration_has_nothing_to_run() {
        for text in ["null", "{}", r#"{"Entrypoint":null,"Cmd":null}"#, r#"{"Entrypoint":[""]}"#] {
            let (config, _) = parse(&document(text)).unwrap();
            assert!(matches!(config.argv(&[]), Err(ImageError::NoEntrypoint)), "{text}");
            assert_eq!(config.stop_signal, SIGTERM);
        }
    }

    #[test]
    fn another_platform_is_named() {
        let text = r#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(parse(text.as_bytes()).unwrap_err().to_string().contains("linux/arm64"));
    }

    #[test]
    fn signals() {
        for (text, number) in [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMAX-1", 63), ("SIGSYS", 31)] {
            assert_eq!(signal(text), Some(number), "{text}");
        }
        for text in ["0", "65", "-1", "SIGFOO", "SIGRTMIN+99", "RTMIN-1", "RTMIN+2147483647"] {
            assert_eq!(signal(text), None, "{text}");
        }
    }
}
