//! `version`: what this program is.

use clap::Args;
use serde_json::json;

use super::print::Printer;
use crate::control::SCHEMA;
use crate::error::Exit;

/// Show version and build
#[derive(Debug, Args)]
pub(super) struct Version {
    /// The number alone
    #[arg(long, conflicts_with = "json")]
    short: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Version, print: &Printer) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let build = option_env!("SSM_PROXY_BUILD").unwrap_or("unknown");
    if args.json {
        print.json(&json!({ "schema": SCHEMA, "version": version, "platform": platform, "build": build }))?;
    } else if args.short {
        print.data(version)?;
    } else {
        print.data(&format!("ssm-proxy {version}\n  build     {build}\n  platform  {platform}"))?;
    }
    Ok(Exit::Ok)
}
