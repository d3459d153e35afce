//! A small storage service on rootkeyd, as an example: encrypted images, volumes,
//! snapshots and shares, and virtual servers that boot from them.
//!
//!     cargo run --example volume-service -- --dir STATE provision data --key volumes vol-1
//!
//! Here is what can be typed; `service/` does it.

#![expect(clippy::print_stdout, reason = "what was asked for is printed")]

mod service;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use rootkeyd::client::{ClientConfig, RetryPolicy, StorageClient};

use self::service::{
    VolumeService,
    failure::{Failure, file},
    luks::Extent,
    machine::make_root,
    metadata::{Kind, Resource},
    statuses,
};

/// A small storage service on rootkeyd.
#[derive(Debug, Parser)]
#[command(name = "volume-service", max_term_width = 100)]
struct Args {
    /// Where metadata, LUKS files and sockets are
    #[arg(long, env = "VOLUME_SERVICE_DIR")]
    dir: PathBuf,
    /// client.toml of rootkeyd
    #[arg(long, env = "ROOTKEYCTL_CONFIG", default_value = "dev/client.toml")]
    config: PathBuf,
    /// Certificate to be taken from the folder of the configured one
    #[arg(long, default_value = "block-storage")]
    identity: String,
    /// Kernel of the virtual servers; `softhsm/setup.sh --boot` brings one
    #[arg(long, default_value = "target/boot/vmlinuz")]
    kernel: PathBuf,
    /// Milliseconds that LUKS takes to derive a key from a passphrase
    #[arg(long, default_value_t = 100)]
    iter_time: u32,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an encrypted image
    #[command(subcommand)]
    Image(Image),
    /// Make an encrypted volume
    #[command(subcommand)]
    Provision(Provision),
    /// Make an encrypted file share
    #[command(subcommand)]
    Share(Share),
    /// Make a virtual server
    #[command(subcommand)]
    Server(ServerCommand),
    /// Keep a volume or share as it is now
    Snapshot {
        name: String,
        #[arg(long)]
        of: String,
    },
    /// Make a volume or share from a snapshot
    Restore {
        name: String,
        #[arg(long)]
        snapshot: String,
    },
    /// Attach a data volume to a server
    Attach { volume: String, server: String },
    /// Detach it
    Detach { volume: String },
    /// Boot a server from its encrypted boot volume
    Start { server: String },
    /// Power a server off
    Stop { server: String },
    /// Write a pattern to what is attached or mounted
    Write(Data),
    /// See whether the pattern is there
    Read(Data),
    /// Delete a resource or server
    Delete { name: String },
    /// Show everything with its status
    List,
    /// Show one resource or server as JSON
    Status { name: String },
    /// Rewrap every DEK of a key
    Rewrap {
        #[arg(long)]
        key: String,
    },
    /// Do what the events of the keys ask, until stopped
    Serve,
}

#[derive(Debug, Subcommand)]
enum Image {
    /// From a plain file; without one, of a system that only says that it is up
    Create {
        name: String,
        #[arg(long)]
        key: String,
        #[arg(long)]
        from: Option<PathBuf>,
        /// Of the system
        #[arg(long, default_value = "target/boot/busybox")]
        busybox: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Provision {
    /// From an image
    Boot {
        name: String,
        #[arg(long)]
        key: String,
        #[arg(long)]
        from_image: String,
    },
    /// Empty
    Data {
        name: String,
        #[arg(long)]
        key: String,
        /// In bytes
        #[arg(long, default_value_t = 16 << 20)]
        size: u64,
    },
}

#[derive(Debug, Subcommand)]
enum Share {
    /// Empty
    Create {
        name: String,
        #[arg(long)]
        key: String,
        /// In bytes
        #[arg(long, default_value_t = 16 << 20)]
        size: u64,
    },
    /// Unwrap its DEK and serve it
    Mount { name: String },
    /// Stop serving it
    Unmount { name: String },
}

#[derive(Debug, Subcommand)]
enum ServerCommand {
    /// Of a boot volume
    Create {
        name: String,
        #[arg(long)]
        boot_volume: String,
    },
}

#[derive(Debug, clap::Args)]
struct Data {
    name: String,
    /// Value of every byte
    #[arg(long, default_value_t = 0xa5)]
    pattern: u8,
    #[arg(long, default_value_t = 0)]
    offset: u64,
    #[arg(long, default_value_t = 65536)]
    length: u64,
}

impl Data {
    fn extent(&self) -> Extent {
        Extent { pattern: self.pattern, offset: self.offset, length: self.length }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let Args { dir, config, identity, kernel, iter_time, command } = args;
    let mut config = ClientConfig::load(&config)?;
    config.use_identity(&identity);
    let rootkeyd = StorageClient::open(config, RetryPolicy::default())?;
    let service = VolumeService::open(&dir, &kernel, iter_time, rootkeyd)?;
    match command {
        Command::Image(Image::Create { name, key, from: Some(from), busybox: _ }) => {
            service.create_image(&name, &key, &from).await
        }
        Command::Image(Image::Create { name, key, from: None, busybox }) => {
            let root = dir.join("run/root.ext4");
            make_root(&busybox, ROOT_BYTES, &root)?;
            let made = service.create_image(&name, &key, &root).await;
            std::fs::remove_file(&root).map_err(file(&root))?;
            made
        }
        Command::Provision(Provision::Boot { name, key, from_image }) => {
            service.provision_from_image(&name, &key, &from_image).await
        }
        Command::Provision(Provision::Data { name, key, size }) => {
            service.provision(&name, Kind::DataVolume, &key, size).await
        }
        Command::Share(Share::Create { name, key, size }) => {
            service.provision(&name, Kind::Share, &key, size).await
        }
        Command::Share(Share::Mount { name }) => service.mount(&name).await,
        Command::Share(Share::Unmount { name }) => service.unmount(&name),
        Command::Server(ServerCommand::Create { name, boot_volume }) => {
            service.create_server(&name, &boot_volume).await
        }
        Command::Snapshot { name, of } => service.snapshot(&name, &of).await,
        Command::Restore { name, snapshot } => service.restore(&name, &snapshot).await,
        Command::Attach { volume, server } => service.attach(&volume, &server).await,
        Command::Detach { volume } => service.detach(&volume).await,
        Command::Start { server } => service.start(&server).await,
        Command::Stop { server } => service.stop(&server),
        Command::Write(data) => service.write(&data.name, data.extent()),
        Command::Read(data) => service.read(&data.name, data.extent()),
        Command::Delete { name } => service.delete(&name).await,
        Command::List => list(&service),
        Command::Status { name } => status(&service, &name),
        Command::Rewrap { key } => rewrap(&service, &key).await,
        Command::Serve => serve(&service).await,
    }
}

/// An event that could not be dealt with is acknowledged as failed, and the next one
/// is taken.
async fn serve(service: &VolumeService) -> Result<(), Failure> {
    // Without a token: from the oldest event that was not acknowledged.
    let mut events = service.rootkeyd.events("");
    eprintln!("waiting for key events");
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        println!("event {}: {} of {}", event.id, event.r#type().as_str_name(), event.key);
        match service.answer(&event).await {
            Ok(done) => done.iter().for_each(|line| println!("  {line}")),
            Err(failure) => eprintln!("  {failure}"),
        }
    }
}

async fn rewrap(service: &VolumeService, key: &str) -> Result<(), Failure> {
    // By its full name, which an alias does not tell.
    let registrations = service.rootkeyd.registrations(key, "").await?;
    let key = registrations.first().and_then(|it| it.name.split_once("/registrations/"));
    let Some((key, _)) = key else { return Ok(()) };
    service.rewrap(key).await?.iter().for_each(|line| println!("{line}"));
    Ok(())
}

fn list(service: &VolumeService) -> Result<(), Failure> {
    let metadata = service.lock()?;
    for (name, resource) in &metadata.state.resources {
        let (status, reason) = statuses::of_resource(resource);
        let to = resource.attachment.as_ref().map_or("-", |it| it.server.as_str());
        println!("{name:16} {:12} {status:10} {reason:24} {to}", kind_name(resource));
    }
    for (name, server) in &metadata.state.servers {
        let (status, reason) = statuses::of_server(&metadata, server);
        let runs = if service.runs(name) { "running" } else { "stopped" };
        println!("{name:16} {:12} {status:10} {reason:24} {runs}", "server");
    }
    Ok(())
}

fn status(service: &VolumeService, name: &str) -> Result<(), Failure> {
    let metadata = service.lock()?;
    let json = match metadata.state.servers.get(name) {
        Some(server) => {
            let (status, status_reason) = statuses::of_server(&metadata, server);
            serde_json::json!({
                "name": name, "status": status, "status_reason": status_reason,
                "running": service.runs(name), "volumes": metadata.attached(name),
            })
        }
        None => {
            let resource = metadata.resource(name)?;
            let (status, status_reason) = statuses::of_resource(resource);
            serde_json::json!({
                "name": name, "status": status, "status_reason": status_reason,
                "online": service.export(name).process.running().is_some(),
                "resource": resource,
            })
        }
    };
    println!("{json:#}");
    Ok(())
}

fn kind_name(resource: &Resource) -> &'static str {
    match resource.kind {
        Kind::Image => "image",
        Kind::BootVolume => "boot-volume",
        Kind::DataVolume => "data-volume",
        Kind::Snapshot => "snapshot",
        Kind::Share => "share",
    }
}

const ROOT_BYTES: u64 = 16 << 20;
