//! The control plane alone, without a node: `serve DATA_DIR ADDR:PORT`. Writes
//! `DATA_DIR/kubeconfig` and serves until it is interrupted.

use std::path::PathBuf;

use skiff_controlplane::auth::kubeconfig;
use skiff_controlplane::{Config, ControlPlane};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(data_dir), Some(listen)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve DATA_DIR ADDR:PORT".into());
    };
    let data_dir = PathBuf::from(data_dir);
    let running = ControlPlane::start(Config::new(&data_dir, Some(listen.parse()?))).await?;
    let address = running.local_addr.ok_or("not listening")?;
    let path = data_dir.join("kubeconfig");
    kubeconfig::write_admin(&path, &format!("https://{address}"), &running.pki)?;
    println!("ready https://{address} {}", path.display());
    tokio::signal::ctrl_c().await?;
    running.shutdown().await;
    Ok(())
}
