//! The command line: one module a verb, each with `run(args) -> ExitStatus`.
//!
//! Data goes to standard output, everything said to a person to standard error.

pub mod check;
pub mod client;
pub mod device;
pub mod exit;
pub mod explain;
pub mod flows;
pub mod init;
pub mod kill;
pub mod output;
pub mod plan;
pub mod policy;
pub mod reload;
pub mod routes;
pub mod run;
pub mod schema;
pub mod status;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use ipnet::IpNet;

pub use exit::ExitStatus;

/// Where the static configuration is unless `--config` says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/portcullis/gateway.toml";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about = "A self-hosted Zero Trust gateway", disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented gateway.toml, a deny-all policy, an empty directory and a key; never overwrites
    Init(InitArgs),
    /// Validate configuration, directory and policy, and run the policy's tests
    Check(CheckArgs),
    /// Run the gateway in the foreground
    Run(RunArgs),
    /// Add, list, show, revoke and remove devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Load policy and directory again, and what [tun] steers, and say what changed
    Reload(ReloadArgs),
    /// Show what the running gateway does
    Status(StatusArgs),
    /// Show the routes and rules that steer traffic into the TUN device, and how they stand to gateway.toml
    Routes(RoutesArgs),
    /// List live flows
    Flows(FlowsArgs),
    /// End live flows
    Kill(KillArgs),
    /// Ask the policy
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the JSON Schema of policy.json or directory.json, for editors
    Schema(schema::SchemaArgs),
}

/// `--config`, which every verb takes.
#[derive(Debug, Clone, Args)]
pub struct ConfigArg {
    /// Static configuration file
    #[arg(long = "config", value_name = "FILE", default_value = DEFAULT_CONFIG)]
    pub path: PathBuf,
}

/// `portcullis init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Keep everything, state and sockets too, in this directory [default: /etc/portcullis and the system's places]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Public address of this gateway, for client files
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_endpoint)]
    pub endpoint: Option<String>,
}

/// `portcullis check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print every limit with its default, and do nothing else
    #[arg(long)]
    pub defaults: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis routes`.
#[derive(Debug, Args)]
pub struct RoutesArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print the `ip` commands that would make it as the file says, and run none
    #[arg(long, conflicts_with = "json")]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
}

/// `portcullis device …`.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Add a device, allocate its addresses, and print its wg-quick file
    Add(DeviceAddArgs),
    /// List devices
    List(DeviceListArgs),
    /// Show one device
    Show(DeviceNameArgs),
    /// Bar a device until `revoked` is taken out of its entry, which stays
    Revoke(DeviceNameArgs),
    /// Take a device out of the directory
    Remove(DeviceNameArgs),
    /// Show the posture facts of a device, or report some to the running gateway
    Posture(DevicePostureArgs),
}

/// `portcullis device add`.
#[derive(Debug, Args)]
pub struct DeviceAddArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Name of the new device
    pub name: String,
    /// User it belongs to; a new user is created
    #[arg(long)]
    pub user: String,
    /// Group of a user that is created by this command; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// The device's own public key; without it a key pair is made, and the private key printed once
    #[arg(long, value_name = "BASE64")]
    pub public_key: Option<String>,
    /// Add a preshared key
    #[arg(long)]
    pub preshared: bool,
    /// A device behind the TUN, known by these networks instead of a key; takes all that follow, so put NAME first
    #[arg(long, value_name = "CIDR", num_args = 1.., value_parser = portcullis_policy::address::parse_net, conflicts_with_all = ["public_key", "preshared", "qr"])]
    pub networks: Vec<IpNet>,
    /// Draw the client file as a QR code too, on standard error
    #[arg(long, conflicts_with = "public_key")]
    pub qr: bool,
    /// Print JSON instead of a wg-quick file
    #[arg(long, conflicts_with = "qr")]
    pub json: bool,
}

/// `portcullis device list`.
#[derive(Debug, Args)]
pub struct DeviceListArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis device show`, `revoke` and `remove`.
#[derive(Debug, Args)]
pub struct DeviceNameArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Name of the device
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis device posture`.
#[derive(Debug, Args)]
pub struct DevicePostureArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Name of the device
    pub name: String,
    /// Facts to report: `true`, `false` and whole numbers are what they look like, anything else is text; FACT:=JSON says it
    /// exactly. None shows what counts now
    #[arg(value_name = "FACT=VALUE", value_parser = device::posture::parse_fact)]
    pub facts: Vec<device::posture::Said>,
    /// They count this long (`10m`, `12h`), and then what the directory has counts again; without it until the next report
    #[arg(long = "for", value_name = "TIME", value_parser = policy::duration)]
    pub counts_for: Option<Duration>,
    /// Take back what was reported: of the facts named, or of all
    #[arg(long)]
    pub clear: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// Only flows of this user
    #[arg(long)]
    pub user: Option<String>,
    /// Only flows of this device
    #[arg(long)]
    pub device: Option<String>,
    /// Only flows towards this address or prefix
    #[arg(long, value_name = "PREFIX", value_parser = parse_prefix)]
    pub to: Option<IpNet>,
    /// Show those that were refused last, newest at the end, instead of those that are open
    #[arg(long)]
    pub denied: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis kill`: exactly one of the three.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["flow", "device", "user"]))]
pub struct KillArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// The flow with this id
    #[arg(long, value_name = "ID")]
    pub flow: Option<u64>,
    /// Every flow of this device
    #[arg(long)]
    pub device: Option<String>,
    /// Every flow of this user
    #[arg(long)]
    pub user: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `portcullis policy …`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Say what the policy answers to one question, and why
    Explain(ExplainArgs),
    /// Say what a policy would change: live flows that end, access that opens and closes; exits 2 when anything does
    Plan(plan::PlanArgs),
    /// Put a policy in force and in the place of the policy file, to be confirmed or for good
    Apply(policy::ApplyArgs),
    /// Keep the policy that was applied to be confirmed
    Confirm(policy::PlainArgs),
    /// List the revisions: when, by whom, and why
    History(policy::PlainArgs),
    /// Print the policy of a revision
    Show(policy::ShowArgs),
    /// Compare the policies of two revisions
    Diff(policy::DiffArgs),
    /// Put the policy of an earlier revision in force again
    Rollback(policy::RollbackArgs),
}

/// `portcullis policy explain`: one of `--device` and `--user`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true).args(["device", "user"]))]
pub struct ExplainArgs {
    /// Static configuration file
    #[command(flatten)]
    pub config: ConfigArg,
    /// The device that would ask
    #[arg(long)]
    pub device: Option<String>,
    /// The user that would ask
    #[arg(long)]
    pub user: Option<String>,
    /// Destination: `10.0.5.12:5432/tcp`, `[fd00::1]:53/udp`, `10.0.5.12/icmp`
    #[arg(long, value_name = "ADDR:PORT/PROTO")]
    pub to: String,
    /// Ask this policy file instead of the configured one
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Ask for this moment (RFC 3339) instead of now
    #[arg(long, value_name = "TIME")]
    pub at: Option<jiff::Timestamp>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Parses the command line and does what it says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitStatus {
    match Cli::try_parse_from(arguments) {
        Ok(cli) => dispatch(cli.command),
        Err(error) => {
            // Help and version are "errors" of clap that belong on standard output. A closed pipe is nobody's fault.
            let _ = error.print();
            if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Done }
        }
    }
}

fn dispatch(command: Command) -> ExitStatus {
    match command {
        Command::Init(args) => init::run(args),
        Command::Check(args) => check::run(args),
        Command::Run(args) => run::run(args),
        Command::Device(command) => device::run(command),
        Command::Reload(args) => reload::run(args),
        Command::Status(args) => status::run(args),
        Command::Routes(args) => routes::run(args),
        Command::Flows(args) => flows::run(args),
        Command::Kill(args) => kill::run(args),
        Command::Policy(PolicyCommand::Explain(args)) => explain::run(args),
        Command::Schema(args) => schema::run(&args),
        Command::Policy(PolicyCommand::Plan(args)) => plan::run(args),
        Command::Policy(PolicyCommand::Apply(args)) => policy::apply(args),
        Command::Policy(PolicyCommand::Confirm(args)) => policy::confirm(args),
        Command::Policy(PolicyCommand::History(args)) => policy::history(args),
        Command::Policy(PolicyCommand::Show(args)) => policy::show(args),
        Command::Policy(PolicyCommand::Diff(args)) => policy::diff(args),
        Command::Policy(PolicyCommand::Rollback(args)) => policy::rollback(args),
    }
}

/// A prefix, or an address as a prefix of one.
fn parse_prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "expected an address or a prefix, like 10.0.0.0/8".to_owned())
}

/// `host:port`, where an IPv6 address stands in brackets.
fn parse_endpoint(text: &str) -> Result<String, String> {
    if crate::config::is_endpoint(text) {
        Ok(text.to_owned())
    } else {
        Err(crate::config::ConfigError::NotAnEndpoint.to_string())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn exit(line: &str) -> ExitStatus {
        match Cli::try_parse_from(line.split(' ')) {
            Ok(_) => ExitStatus::Done,
            Err(error) if error.use_stderr() => ExitStatus::Usage,
            Err(_) => ExitStatus::Done,
        }
    }

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_parses() {
        for line in [
            "portcullis --version",
            "portcullis init --dir /tmp/x --endpoint vpn.example.com:51820",
            "portcullis check --config /x --json",
            "portcullis check --defaults",
            "portcullis run --config /x",
            "portcullis device add a --user u --group g --group h --preshared --qr",
            "portcullis device add a --user u --networks 10.0.0.0/8 10.1.0.0/16",
            "portcullis device list --json",
            "portcullis device show a --json",
            "portcullis device revoke a",
            "portcullis device remove a --config /x",
            "portcullis device posture a disk=true os=linux --for 10m --json",
            "portcullis device posture a --clear disk",
            "portcullis reload --json",
            "portcullis status --json",
            "portcullis flows --user u --device d --to 10.0.0.1 --json",
            "portcullis kill --flow 7",
            "portcullis kill --device d --json",
            "portcullis policy plan next.json --offline --at 2027-01-01T00:00:00Z --json",
            "portcullis policy explain --user u --to 10.0.0.1:22/tcp --policy p --at 2027-01-01T00:00:00Z --json",
        ] {
            assert_eq!(exit(line), ExitStatus::Done, "{line}");
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "portcullis",
            "portcullis fly",
            "portcullis kill",
            "portcullis kill --flow 7 --device d",
            "portcullis kill --flow x",
            "portcullis device add a",
            "portcullis device add a --user u --networks 10.0.0.0/8 --qr",
            "portcullis policy explain --to 10.0.0.1:22/tcp",
            "portcullis policy explain --user u --device d --to 10.0.0.1:22/tcp",
            "portcullis flows --to nowhere",
            "portcullis init --endpoint nowhere",
        ] {
            assert_eq!(exit(line), ExitStatus::Usage, "{line}");
        }
    }
}
