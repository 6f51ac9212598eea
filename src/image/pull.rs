//! `skiff image pull`: fetches an image, whether or not anything else of Skiff runs.

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use skiff_images::registry::{Registries, RegistryConfig};
use skiff_images::{
    Credentials, DockerConfig, Observer, Platform, PullRequest, Puller, Reference, RegistryPuller,
};
use tokio::signal::unix::{SignalKind, signal};

use super::NodeImages;
use super::progress::{Bars, Lines};

#[derive(Debug, Args)]
pub struct PullArgs {
    #[arg(value_name = "REF")]
    reference: Reference,
    /// Fetch the image for another platform than this machine's: OS/ARCHITECTURE[/VARIANT]
    #[arg(long)]
    platform: Option<Platform>,
    /// The account at the registry; by default that of ~/.docker/config.json
    #[arg(long, value_name = "USER:PASSWORD", value_parser = account)]
    creds: Option<Credentials>,
    /// Speak to the registry without TLS
    #[arg(long)]
    plain_http: bool,
    /// Trust certificates signed by these authorities too (PEM)
    #[arg(long = "ca", value_name = "FILE")]
    authorities: Vec<PathBuf>,
    /// Where hosts.toml files say how registries are reached, in the layout of containerd's certs.d
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// Print the digest alone
    #[arg(short, long)]
    quiet: bool,
}

fn account(text: &str) -> Result<Credentials, String> {
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok(Credentials::basic(user, password)),
        _ => Err("USER:PASSWORD is expected".to_owned()),
    }
}

/// Prints the progress to stderr, and the digest that the name stands for to stdout.
pub(super) async fn run(node: NodeImages, args: &PullArgs) -> anyhow::Result<()> {
    let NodeImages { place, store } = node;
    if let Some(node) = place.node.filter(|_| !args.quiet) {
        eprintln!("on {node}:");
    }
    let mut config = RegistryConfig::for_data_dir(&place.data_dir, args.hosts_dir.clone());
    config.extra_cas = args.authorities.clone();
    if args.plain_http {
        config.plain_http.push(args.reference.registry().to_owned());
    }
    let credentials = match &args.creds {
        Some(account) => vec![account.clone()],
        None => {
            let config = DockerConfig::load()?;
            config.lookup(&args.reference).await?.into_iter().collect()
        }
    };
    let (bars, observer) = watch(args.quiet);
    let request = PullRequest {
        platform: args.platform.clone(),
        observer,
        ..PullRequest::new(args.reference.clone(), credentials)
    };
    let puller = RegistryPuller::new(store, Registries::new(config));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let pulled = tokio::select! {
        pulled = puller.pull(request) => pulled?,
        () = draw(bars.as_deref()) => bail!("the progress can't be shown"),
        // What was staged is removed before the process ends.
        _ = interrupt.recv() => bail!("interrupted: the image was not added"),
        _ = terminate.recv() => bail!("terminated: the image was not added"),
    };
    if let Some(bars) = &bars {
        bars.finish();
    }
    println!("{}", pulled.image.digest);
    Ok(())
}

/// Who is told of the pull's progress: bars on a terminal, lines elsewhere.
fn watch(quiet: bool) -> (Option<Arc<Bars>>, Option<Observer>) {
    if quiet {
        return (None, None);
    }
    if stderr().is_terminal() {
        let bars = Arc::new(Bars::default());
        let told = Arc::clone(&bars);
        return (Some(bars), Some(Arc::new(move |event| told.take(event))));
    }
    let lines = Lines::default();
    (None, Some(Arc::new(move |event| lines.take(event))))
}

/// Draws until it is dropped.
async fn draw(bars: Option<&Bars>) {
    match bars {
        Some(bars) => bars.draw().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_a_user_and_a_password() {
        assert_eq!(account("me:a:b").unwrap(), Credentials::basic("me", "a:b"));
        assert!(account("me").is_err());
        assert!(account(":x").is_err());
    }
}
