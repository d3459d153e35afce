//! How fast the daemon is beside what it is made of: a bare gRPC echo over the same
//! mutual TLS, and a bare loop of C_DecryptInit and C_Decrypt on the same module, key and
//! buffers. All of it in one run, in interleaved rounds of short slices, so that what else
//! the machine does hits every case alike. docs/performance.md says how to read it.
//!
//! `make bench` runs it; by hand: `cargo bench --bench load -- --only unwrap --rounds 3`.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "the table is for people")]
#![expect(unreachable_pub, reason = "nobody uses a program as a library")]

mod callers;
mod cases;
mod commit;
mod connect;
mod cpu;
mod daemon;
mod echo;
mod figures;
mod peer;
mod plot;
mod storm;
mod targets;
mod token;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use cases::{Machinery, chosen};
use figures::Figures;

/// Measures; writes load.json and latest.svg.
#[derive(Parser)]
struct Arguments {
    /// How often every case has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a turn takes: so long with as many calls as it can, and so long again at
    /// 70 % of that rate.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Cases whose name contains this alone, such as `unwrap`, `network_3ms` or `boot_storm`.
    /// What a case is set beside is measured with it.
    #[arg(long, default_value = "")]
    only: String,
    /// Where to write.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is when it starts itself.
#[derive(Subcommand)]
enum Role {
    /// The gRPC echo.
    #[command(hide = true)]
    Echo(echo::Echo),
    /// Bare loops on a token.
    #[command(hide = true)]
    Token(token::Loop),
}

fn main() {
    let arguments = Arguments::parse();
    match arguments.role {
        None => measure(&arguments),
        Some(Role::Echo(echo)) => echo.serve(),
        Some(Role::Token(token)) => token.run(),
    }
}

fn measure(arguments: &Arguments) {
    let slice = Duration::from_secs_f64(arguments.seconds);
    let cases = chosen(&arguments.only);
    let storms = "boot_storm".contains(&arguments.only);
    assert!(storms || !cases.is_empty(), "no case has {:?} in its name", arguments.only);
    std::fs::create_dir_all(&arguments.out).unwrap();
    let mut figures = Figures::default();
    if !cases.is_empty() {
        let mut machinery = Machinery::new(&cases, &arguments.out);
        for round in 1..=arguments.rounds {
            for case in &cases {
                eprintln!("round {round} of {}: {}", arguments.rounds, case.title());
                let taken = machinery.run(case, slice);
                figures.add(case, taken);
            }
        }
    }
    let storms = if storms { storm::both(&arguments.out) } else { Vec::new() };
    let ratios = targets::of(&figures);
    println!("{}\n{}", figures.table(), targets::table(&ratios));
    storms.iter().for_each(|storm| println!("{}", storm.told()));
    let document = serde_json::json!({
        "rows": figures.rows(),
        "ratios": ratios,
        "boot_storms": storms,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    });
    let text = serde_json::to_string_pretty(&document).unwrap();
    std::fs::write(arguments.out.join("load.json"), text).unwrap();
    if !cases.is_empty() {
        plot::draw(&figures, &arguments.out.join("latest.svg"));
    }
}
