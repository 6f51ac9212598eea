//! How the target is asked during a drill, as it is typed.

use std::str::FromStr;

use clap::Args;
use skiff_dev::{GoDuration, ProbeScheme, ProbeSpec};

#[derive(Args, Debug, Default)]
pub struct ProbeArgs {
    /// What to ask meanwhile: http://HOST:PORT/PATH or tcp://HOST:PORT instead of the target's
    /// Service, `http` or `tcp` for how to ask the Service, `off` to ask nothing
    #[arg(long, value_name = "URL|http|tcp|off")]
    probe: Option<ProbeChoice>,
    /// The Service to ask [default: the first one that selects the target's pods]
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    service: Option<String>,
    /// The port to ask [default: the Service's first]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The path to ask for [default: /]
    #[arg(long, value_name = "PATH", value_parser = path)]
    path: Option<String>,
    /// Requests a second, 1 to 1000 [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1000))]
    rate: Option<i32>,
    /// How long an answer may take [default: 1s]
    #[arg(long, value_name = "DURATION")]
    probe_timeout: Option<GoDuration>,
}

/// The value of `--probe`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ProbeChoice {
    Off,
    Service(ProbeScheme),
    Address {
        scheme: ProbeScheme,
        host: String,
        port: u16,
        path: Option<String>,
    },
}

impl ProbeArgs {
    /// `None` when nothing was said of probing.
    ///
    /// # Errors
    /// When options contradict each other.
    pub fn spec(self) -> Result<Option<ProbeSpec>, String> {
        let untold = self.probe.is_none()
            && self.service.is_none()
            && self.port.is_none()
            && self.path.is_none()
            && self.rate.is_none()
            && self.probe_timeout.is_none();
        if untold {
            return Ok(None);
        }
        let asked = ProbeSpec {
            service: self.service,
            port: self.port.map(i32::from),
            path: self.path,
            rate: self.rate,
            timeout: self.probe_timeout,
            ..ProbeSpec::default()
        };
        let spec = match self.probe {
            None => asked,
            Some(ProbeChoice::Off) => {
                if asked != ProbeSpec::default() {
                    return Err("with --probe off there is nothing else to say of probing".into());
                }
                ProbeSpec { off: true, ..asked }
            }
            Some(ProbeChoice::Service(scheme)) => ProbeSpec {
                scheme: Some(scheme),
                ..asked
            },
            Some(ProbeChoice::Address {
                scheme,
                host,
                port,
                path,
            }) => {
                if asked.service.is_some() || asked.port.is_some() || asked.path.is_some() {
                    return Err(
                        "--probe with an address says what --service, --port and --path would"
                            .into(),
                    );
                }
                ProbeSpec {
                    scheme: Some(scheme),
                    host: Some(host),
                    port: Some(port.into()),
                    path,
                    ..asked
                }
            }
        };
        if spec.scheme == Some(ProbeScheme::Tcp) && spec.path.is_some() {
            return Err("a TCP probe has no path".into());
        }
        Ok(Some(spec))
    }
}

impl FromStr for ProbeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::Off),
            "http" => return Ok(Self::Service(ProbeScheme::Http)),
            "tcp" => return Ok(Self::Service(ProbeScheme::Tcp)),
            _ => {}
        }
        let wrong =
            || format!("{text:?} is no http://HOST:PORT/PATH, tcp://HOST:PORT, http, tcp or off");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (authority, path) = match rest.find('/') {
            Some(at) => (&rest[..at], Some(rest[at..].to_owned())),
            None => (rest, None),
        };
        let scheme =
            match scheme {
                "http" => ProbeScheme::Http,
                "tcp" if path.as_deref().is_none_or(|path| path == "/") => ProbeScheme::Tcp,
                "https" => return Err(
                    "probes ask by HTTP or TCP: tcp://HOST:PORT sees whether a TLS port answers"
                        .into(),
                ),
                _ => return Err(wrong()),
            };
        let (host, port) = host_and_port(authority).ok_or_else(wrong)?;
        let port = match (port, scheme) {
            (Some(port), _) => port,
            (None, ProbeScheme::Http) => 80,
            (None, ProbeScheme::Tcp) => return Err(format!("{text:?} has no port")),
        };
        Ok(Self::Address {
            scheme,
            host,
            port,
            path: path.filter(|_| scheme == ProbeScheme::Http),
        })
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':')?),
            };
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let named = !host.is_empty() && !host.contains(['@', ' ', '?', '#']);
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0)?),
        None => None,
    };
    named.then(|| (host.to_owned(), port))
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.contains(char::is_whitespace) {
        return Ok(text.to_owned());
    }
    Err("a path begins with / and holds no blanks".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(args: ProbeArgs) -> ProbeSpec {
        args.spec().unwrap().unwrap()
    }

    fn probe(text: &str) -> ProbeArgs {
        ProbeArgs {
            probe: Some(text.parse().unwrap()),
            ..ProbeArgs::default()
        }
    }

    #[test]
    fn nothing_said_is_nothing_asked_for() {
        assert_eq!(ProbeArgs::default().spec(), Ok(None));
    }

    #[test]
    fn addresses_are_taken_apart() {
        let http = spec(probe("http://web.shop:8080/healthz?deep=1"));
        assert_eq!(http.host.as_deref(), Some("web.shop"));
        assert_eq!(
            (http.port, http.scheme),
            (Some(8080), Some(ProbeScheme::Http))
        );
        assert_eq!(http.path.as_deref(), Some("/healthz?deep=1"));
        assert_eq!(spec(probe("http://web")).port, Some(80));
        let tcp = spec(probe("tcp://[fd00::1]:5432"));
        assert_eq!(
            (tcp.host.as_deref(), tcp.port),
            (Some("fd00::1"), Some(5432))
        );
        assert_eq!(tcp.path, None);
    }

    #[test]
    fn a_scheme_alone_is_for_the_service() {
        let tcp = spec(probe("tcp"));
        assert_eq!((tcp.scheme, tcp.host), (Some(ProbeScheme::Tcp), None));
        assert!(spec(probe("off")).off);
    }

    #[test]
    fn contradictions_are_refused() {
        let mut args = probe("off");
        args.rate = Some(5);
        assert!(args.spec().is_err());
        let mut args = probe("http://a:1/");
        args.service = Some("web".into());
        assert!(args.spec().is_err());
        let mut args = probe("tcp");
        args.path = Some("/".into());
        assert!(args.spec().is_err());
    }

    #[test]
    fn wrong_addresses_are_refused() {
        for wrong in [
            "",
            "on",
            "ftp://a:1",
            "http://",
            "http://:80",
            "tcp://a",
            "tcp://a:0",
            "tcp://a:70000",
            "tcp://a:1/x",
            "http://a:b/",
            "http://[::1/",
            "https://a/",
            "http://u@h/",
        ] {
            assert!(wrong.parse::<ProbeChoice>().is_err(), "{wrong}");
        }
    }
}
