//! `rootkeyctl`: what can be typed, and which file does it.
//!
//! It decides where the configuration comes from. It prints nothing itself:
//! results go through `output`, the one line of a failure through `bin/rootkeyctl.rs`.

mod access;
mod audit;
mod backup;
mod batch;
mod campaign;
mod confirm;
mod crypto;
mod doctor;
mod encoding;
mod event;
mod failure;
mod file;
mod file_format;
mod impact;
mod import_token;
mod instance;
mod key;
mod new_file;
mod output;
mod paging;
mod policy;
mod proof;
mod registration;
mod resource;
mod ring;
mod rotation_period;
mod sealing;
mod streams;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

use self::{
    access::AccessCommand,
    audit::AuditCommand,
    backup::{Backup, Restore},
    batch::BatchUnwrap,
    campaign::CampaignCommand,
    crypto::{Generate, Rewrap, Unwrap, Wrap},
    event::EventCommand,
    file::{Decrypt, Encrypt},
    impact::Impact,
    import_token::ImportTokenCommand,
    instance::InstanceCommand,
    key::KeyCommand,
    output::{Format, Output},
    policy::PolicyCommand,
    registration::RegistrationCommand,
    resource::ResourceCommand,
    ring::RingCommand,
};
pub use self::{failure::Failure, new_file::stop_new_files};
use crate::client::{Client, ClientConfig, default_endpoint, default_instance};

/// Root keys, and the DEKs that they wrap, at a rootkeyd.
#[derive(Debug, Parser)]
#[command(name = "rootkeyctl", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection and output")]
struct Global {
    /// The client.toml to use
    #[arg(long, global = true, env = "ROOTKEYCTL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// URL of the daemon, such as https://127.0.0.1:8443 or unix:///run/rootkeyd/rootkeyd.sock
    #[arg(long, global = true, value_name = "URL")]
    endpoint: Option<String>,
    /// The instance that keys given without one are in
    #[arg(long, global = true)]
    instance: Option<String>,
    /// Certificate authority of the daemon
    #[arg(long, global = true, value_name = "PEM_FILE")]
    ca: Option<PathBuf>,
    /// Certificate of the caller
    #[arg(long, global = true, value_name = "PEM_FILE")]
    certificate: Option<PathBuf>,
    /// Private key of the caller's certificate
    #[arg(long, global = true, value_name = "PEM_FILE")]
    private_key: Option<PathBuf>,
    /// Be NAME: take NAME.pem and NAME.key from the folder of the configured certificate
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        value_parser = identity,
        conflicts_with_all = ["certificate", "private_key"],
    )]
    identity: Option<String>,
    /// Print tables for people, or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How long each call to the daemon may take
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=3600),
    )]
    timeout: u64,
}

impl Global {
    /// The file first, then the flags over it.
    fn client_config(&self) -> Result<ClientConfig, Failure> {
        let mut config = match &self.config {
            Some(path) => ClientConfig::load(path)?,
            None => self.config_of_flags()?,
        };
        if let Some(endpoint) = &self.endpoint {
            config.endpoint.clone_from(endpoint);
        }
        if let Some(instance) = &self.instance {
            config.instance.clone_from(instance);
        }
        let paths = [
            (&self.ca, &mut config.ca),
            (&self.certificate, &mut config.certificate),
            (&self.private_key, &mut config.key),
        ];
        for (flag, path) in paths {
            if let Some(flag) = flag {
                path.clone_from(flag);
            }
        }
        if let Some(name) = &self.identity {
            config.use_identity(name);
        }
        Ok(config)
    }

    fn config_of_flags(&self) -> Result<ClientConfig, Failure> {
        match (&self.ca, &self.certificate, &self.private_key) {
            (Some(ca), Some(certificate), Some(key)) => Ok(ClientConfig {
                endpoint: default_endpoint(),
                instance: default_instance(),
                ca: ca.clone(),
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            (_, _, _) => {
                let local = self.endpoint.clone().map(ClientConfig::local);
                local.filter(ClientConfig::is_local).ok_or(Failure::NoConfig)
            }
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create, list, rotate, disable and delete root keys
    #[command(subcommand, after_help = key::EXAMPLES)]
    Key(KeyCommand),
    /// Make and retrieve the import token that key material is sealed to (BYOK)
    #[command(subcommand, after_help = import_token::EXAMPLES)]
    ImportToken(ImportTokenCommand),
    /// Make, list and delete key rings
    #[command(subcommand, after_help = ring::EXAMPLES)]
    Ring(RingCommand),
    /// Show and set what holds in the instance
    #[command(subcommand, after_help = policy::EXAMPLES)]
    Policy(PolicyCommand),
    /// Make, list and delete instances; for operators
    #[command(subcommand, after_help = instance::EXAMPLES)]
    Instance(InstanceCommand),
    /// See and say which resource is protected by which root key
    #[command(subcommand, after_help = registration::EXAMPLES)]
    Registration(RegistrationCommand),
    /// See what the state of a root key means for the resources that it protects
    #[command(subcommand, after_help = resource::EXAMPLES)]
    Resource(ResourceCommand),
    /// Show what disabling or deleting a root key would do
    Impact(Impact),
    /// Wrap a DEK under a root key
    Wrap(Wrap),
    /// Unwrap a DEK
    Unwrap(Unwrap),
    /// Wrap a wrapped DEK again, under the newest version of its root key
    Rewrap(Rewrap),
    /// Make a random DEK in the HSM and wrap it
    Generate(Generate),
    /// Unwrap many DEKs, from JSON lines to JSON lines
    BatchUnwrap(BatchUnwrap),
    /// Encrypt a file under a fresh DEK, which it carries wrapped
    Encrypt(Encrypt),
    /// Decrypt a file of `rootkeyctl encrypt`
    Decrypt(Decrypt),
    /// What services are told of root keys
    #[command(subcommand, after_help = EVENT_EXAMPLES)]
    Event(EventCommand),
    /// Have services rewrap after a rotation, little by little
    #[command(subcommand, after_help = CAMPAIGN_EXAMPLES)]
    Campaign(CampaignCommand),
    /// See and say who may do what
    #[command(subcommand, after_help = access::EXAMPLES)]
    Access(AccessCommand),
    /// Read the audit log, and prove that it was not changed
    #[command(subcommand, after_help = audit::EXAMPLES)]
    Audit(AuditCommand),
    /// Copy the daemon's store into a file, on its machine; it may be running
    Backup(Backup),
    /// Put a backup in the place of the daemon's store, on its machine; it must not be running
    Restore(Restore),
    /// Check the configuration, the connection, the daemon and its HSM
    #[command(after_help = doctor::EXAMPLES)]
    Doctor,
}

/// Does what was typed.
///
/// # Errors
/// Whatever stopped it; its `Display` is the line for stderr.
pub async fn run(args: Args) -> Result<(), Failure> {
    let Args { global, command } = args;
    let output = Output::new(global.output);
    let timeout = Duration::from_secs(global.timeout);
    if let Command::Audit(AuditCommand::Verify(verify)) = &command {
        return verify.run(output);
    }
    if let Command::Backup(backup) = &command {
        return backup.run(output);
    }
    if let Command::Restore(restore) = &command {
        return restore.run(output);
    }
    let config = global.client_config()?;
    if matches!(command, Command::Doctor) {
        return doctor::run(&config, timeout, output).await;
    }
    let client = Client::connect(&config, timeout).await?;
    match command {
        Command::Key(command) => command.run(&client, output).await,
        Command::ImportToken(command) => command.run(&client, output).await,
        Command::Ring(command) => command.run(&client, output).await,
        Command::Policy(command) => command.run(&client, output).await,
        Command::Instance(command) => command.run(&client, output).await,
        Command::Registration(command) => command.run(&client, output).await,
        Command::Resource(command) => command.run(&client, output).await,
        Command::Impact(command) => command.run(&client, output).await,
        Command::Wrap(command) => command.run(&client, output).await,
        Command::Unwrap(command) => command.run(&client, output).await,
        Command::Rewrap(command) => command.run(&client, output).await,
        Command::Generate(command) => command.run(&client, output).await,
        Command::BatchUnwrap(command) => command.run(&client).await,
        Command::Encrypt(command) => command.run(&client, output).await,
        Command::Decrypt(command) => command.run(&client, output).await,
        Command::Event(command) => command.run(&client, output).await,
        Command::Campaign(command) => command.run(&client, output).await,
        Command::Access(command) => command.run(&client, output).await,
        Command::Audit(command) => command.run(&client, output).await,
        Command::Doctor | Command::Backup(_) | Command::Restore(_) => Ok(()),
    }
}

fn identity(name: &str) -> Result<String, &'static str> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err("an identity is the name of a file without its folder and extension");
    }
    Ok(name.to_owned())
}

const EVENT_EXAMPLES: &str = "\
Examples:
  rootkeyctl --identity block-storage event watch
  rootkeyctl event sync block";

const CAMPAIGN_EXAMPLES: &str = "\
Examples:
  rootkeyctl key rotate block
  rootkeyctl campaign create block --rate 1200
  rootkeyctl campaign get block";

const EXAMPLES: &str = "\
Examples:
  export ROOTKEYCTL_CONFIG=/var/lib/rootkeyd-dev/client.toml
  rootkeyctl doctor
  rootkeyctl key create --name 'Block storage' --alias block
  rootkeyctl --identity block-storage generate block --wrapped dek.wrapped --wrapped-only
  rootkeyctl --output json key list

Exit codes: 0 done; 1 refused, with `REASON: message` on stderr; 2 usage.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(["rootkeyctl"].iter().chain(args))
    }

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  "), "{} has no examples", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Args::command());
    }

    #[test]
    fn flags_alone_are_a_configuration() {
        let args = parse(&[
            "doctor",
            "--ca=ca.pem",
            "--certificate=a.pem",
            "--private-key=a.key",
            "--instance=prod",
        ]);
        let mut global = args.unwrap().global;
        global.config = None;
        let config = global.client_config().unwrap();
        assert_eq!(config.endpoint, "https://127.0.0.1:8443");
        assert_eq!(config.instance, "prod");
    }

    #[test]
    fn no_configuration_is_said_in_a_sentence() {
        let mut global = parse(&["doctor"]).unwrap().global;
        global.config = None;
        let failure = global.client_config().unwrap_err();
        assert!(failure.line().starts_with("CONFIG_INVALID: "), "{failure}");
    }

    #[test]
    fn an_identity_cannot_leave_its_folder() {
        for name in ["../admin", "/etc/admin", "", ".hidden"] {
            assert!(parse(&["doctor", "--identity", name]).is_err(), "{name}");
        }
        assert!(parse(&["doctor", "--identity", "block-storage"]).is_ok());
    }

    #[test]
    fn an_update_of_nothing_is_a_usage_error() {
        assert!(parse(&["key", "update", "k"]).is_err());
        assert!(parse(&["key", "update", "k", "--clear-tags"]).is_ok());
        assert!(parse(&["key", "update", "k", "--clear-tags", "--tag=a"]).is_err());
    }
}
