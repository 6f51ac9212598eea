//! `skiff token`: what other hosts join with.
//!
//! Tokens are Kubernetes' bootstrap tokens (Secrets of kube-system), so `kubeadm token` and `kubectl`
//! see the same. What is printed carries the pin of the cluster's authority behind the token.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use rand::Rng;
use serde::Serialize;
use skiff_agent::join::Pin;
use skiff_controlplane::auth::bootstrap_tokens::{NAMESPACE, SECRET_TYPE, secret_name};
use skiff_controlplane::cluster_info::ClusterInfo;
use skiff_dev::GoDuration;

use crate::api_client::ApiArgs;
use crate::output::{Format, Table};

const USAGES: [&str; 2] = ["signing", "authentication"];
const USAGE_PREFIX: &str = "usage-bootstrap-";

#[derive(Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token, and print the command by which another host joins with it
    Create(CreateArgs),
    /// List the tokens
    List(ListArgs),
    /// Delete a token: who has it can no longer join
    Delete(DeleteArgs),
}

#[derive(Args)]
struct CreateArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// How long the token is good; 0: for ever
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    ttl: GoDuration,
    /// What the token is for
    #[arg(long, value_name = "USAGE", value_delimiter = ',', default_values_t = USAGES.map(String::from),
        value_parser = clap::builder::PossibleValuesParser::new(USAGES))]
    usages: Vec<String>,
    /// What is written beside the token
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Print the command alone, as it does anyway; for those who are used to kubeadm
    #[arg(long)]
    print_join_command: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
struct DeleteArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// The token, or its first six characters
    #[arg(value_name = "TOKEN", required = true)]
    tokens: Vec<String>,
}

/// A token, without its secret.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    usages: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    extra_groups: Vec<String>,
}

pub async fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        TokenCommand::Create(args) => create_and_print(args).await?,
        TokenCommand::List(args) => list(args).await?,
        TokenCommand::Delete(args) => delete(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A new token of a cluster: `<id>.<secret>.<pin>`.
pub async fn create(
    client: &kube::Client,
    authority: &str,
    ttl: Duration,
    usages: &[String],
    description: Option<&str>,
) -> anyhow::Result<String> {
    let pin = Pin::of_pem(authority).context("the cluster's authority is no certificate")?;
    let (id, secret) = (random(6), random(16));
    let mut entries = BTreeMap::from([
        ("token-id".to_owned(), id.clone()),
        ("token-secret".to_owned(), secret.clone()),
    ]);
    entries.extend(
        usages
            .iter()
            .map(|usage| (format!("{USAGE_PREFIX}{usage}"), "true".to_owned())),
    );
    if !ttl.is_zero() {
        let expires = Timestamp::now()
            .checked_add(ttl)
            .context("the --ttl is too long")?;
        entries.insert("expiration".into(), expires.strftime("%FT%TZ").to_string());
    }
    entries.extend(description.map(|text| ("description".to_owned(), text.to_owned())));
    let object = Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(&id)),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.to_owned()),
        string_data: Some(entries),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    secrets
        .create(&PostParams::default(), &object)
        .await
        .context("cannot make a token")?;
    Ok(format!("{id}.{secret}.{pin}"))
}

async fn create_and_print(args: CreateArgs) -> anyhow::Result<()> {
    let client = args.api.client().await?;
    let info = ClusterInfo::read(&client)
        .await
        .context("cannot ask the cluster how it is reached")?
        .context("the cluster does not say how it is reached: is it a Skiff of this version?")?;
    let token = create(
        &client,
        &info.authority,
        args.ttl.0,
        &args.usages,
        args.description.as_deref(),
    )
    .await?;
    let command = format!("skiff agent --server {} --token {token}", info.url);
    if is_loopback(&info.url) {
        eprintln!(
            "warning: the API is served at {} only, which other hosts can't reach: start the server with --listen 0.0.0.0:6443",
            info.url
        );
    }
    match args.output {
        Format::Json => {
            let printed = serde_json::json!({
                "token": token, "server": info.url, "command": command,
            });
            println!("{}", serde_json::to_string_pretty(&printed)?);
        }
        Format::Table => println!("{command}"),
    }
    Ok(())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(args.api.client().await?, NAMESPACE);
    let params = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
    let found = secrets.list(&params).await.context("cannot list tokens")?;
    let tokens: Vec<Listed> = found.iter().map(listed).collect();
    if args.output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&tokens)?);
        return Ok(());
    }
    let mut table = Table::new(["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION"]);
    let now = Timestamp::now();
    for token in tokens {
        let expires = token.expires.as_deref();
        table.row([
            token.id,
            expires.map_or_else(|| "<forever>".into(), |at| time_left(at, now)),
            expires.unwrap_or("<never>").to_owned(),
            token.usages.join(","),
            token.description.unwrap_or_else(|| "<none>".into()),
        ]);
    }
    print!("{table}");
    Ok(())
}

async fn delete(args: DeleteArgs) -> anyhow::Result<()> {
    let secrets: Api<Secret> = Api::namespaced(args.api.client().await?, NAMESPACE);
    for token in &args.tokens {
        let id = token.split('.').next().unwrap_or_default();
        match secrets
            .delete(&secret_name(id), &DeleteParams::default())
            .await
        {
            Ok(_) => println!("token {id} deleted"),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                anyhow::bail!("there is no token {id}: `skiff token list` shows them")
            }
            Err(error) => return Err(error).context(format!("cannot delete the token {id}")),
        }
    }
    Ok(())
}

fn listed(secret: &Secret) -> Listed {
    let entry = |key: &str| -> Option<String> {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    let usages = secret.data.iter().flatten().filter_map(|(key, value)| {
        let usage = key.strip_prefix(USAGE_PREFIX)?;
        (value.0 == b"true").then(|| usage.to_owned())
    });
    let groups = entry("auth-extra-groups").unwrap_or_default();
    Listed {
        id: entry("token-id").unwrap_or_default(),
        expires: entry("expiration"),
        usages: usages.collect(),
        description: entry("description"),
        extra_groups: groups
            .split(',')
            .filter(|group| !group.is_empty())
            .map(str::to_owned)
            .collect(),
    }
}

fn time_left(expires: &str, now: Timestamp) -> String {
    let Ok(at) = expires.parse::<Timestamp>() else {
        return "<invalid>".into();
    };
    let left = at.as_second() - now.as_second();
    match left {
        ..=0 => "<expired>".into(),
        1..60 => format!("{left}s"),
        60..3600 => format!("{}m", left / 60),
        _ => format!("{}h", left / 3600),
    }
}

fn is_loopback(url: &str) -> bool {
    let host = url.trim_start_matches("https://");
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    address.is_ok_and(|ip| ip.is_loopback())
}

fn random(length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    let letter = |_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]);
    (0..length).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_address_is_no_way_in() {
        assert!(is_loopback("https://127.0.0.1:6443"));
        assert!(is_loopback("https://[::1]:6443"));
        assert!(!is_loopback("https://10.0.0.1:6443"));
        assert!(!is_loopback("https://server.example:6443"));
    }

    #[test]
    fn tokens_are_of_the_known_form() {
        let token = format!("{}.{}.{}", random(6), random(16), "00".repeat(32));
        assert!(token.parse::<skiff_agent::join::JoinToken>().is_ok());
        assert_ne!(random(16), random(16));
    }

    #[test]
    fn what_is_left_of_a_token_is_told_shortly() {
        let now = Timestamp::from_second(0).unwrap();
        assert_eq!(time_left("1970-01-02T00:00:00Z", now), "24h");
        assert_eq!(time_left("1970-01-01T00:05:00Z", now), "5m");
        assert_eq!(time_left("1969-01-01T00:05:00Z", now), "<expired>");
    }
}
