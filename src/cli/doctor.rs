//! `doctor`: one line for each thing that must be right, from the client's own
//! certificate to the HSM, with what to do where it is not.

use std::{fs, time::Duration};

use comfy_table::Table;
use serde::Serialize;
use x509_parser::pem::parse_x509_pem;

use super::{
    failure::Failure,
    output::{NOTHING, Output, human_time, or_nothing, rfc3339, rows},
};
use crate::{
    api::pb::{
        self,
        hsm_status::{Finding, finding::Kind},
    },
    client::{Client, ClientConfig, Refusal},
};

/// Checks everything that can be reached, prints it, and fails if a check did.
pub(super) async fn run(
    config: &ClientConfig,
    timeout: Duration,
    output: Output,
) -> Result<(), Failure> {
    let local = config.is_local();
    let by = if local { "Unix socket" } else { "mutual TLS with" };
    let mut checks = Vec::new();
    if !local {
        checks.extend([configuration(config), certificate(config)]);
    }
    match Client::connect(config, timeout).await {
        Err(error) => checks.push(Check::failed(
            "connection",
            error.to_string(),
            "start rootkeyd; compare endpoint and ca in client.toml with its configuration",
        )),
        Ok(client) => {
            checks.push(Check::ok("connection", format!("{by} {}", config.endpoint)));
            let info = client.admin().get_server_info(pb::GetServerInfoRequest {}).await;
            match info.map_err(Refusal::from) {
                Ok(info) => checks.push(server(info.into_inner())),
                Err(refusal) => checks.push(refused("daemon", &refusal)),
            }
            let status = client.admin().get_hsm_status(pb::GetHsmStatusRequest {}).await;
            match status.map_err(Refusal::from) {
                Ok(status) => checks.extend(hsm(status.into_inner())),
                Err(refusal) => checks.push(refused("hsm", &refusal)),
            }
        }
    }
    let failed = checks.iter().filter(|check| !check.ok).count();
    let total = checks.len();
    output.show(&Report { ready: failed == 0, checks }, Report::table)?;
    if failed > 0 { Err(Failure::NotReady { failed, total }) } else { Ok(()) }
}

/// Everything that was checked.
#[derive(Debug, Serialize)]
struct Report {
    ready: bool,
    checks: Vec<Check>,
}

impl Report {
    fn table(&self) -> Table {
        let row = |check: &Check| {
            vec![
                check.name.to_owned(),
                if check.ok { "ok" } else { "FAIL" }.to_owned(),
                check.detail.clone(),
                check.advice.unwrap_or(NOTHING).to_owned(),
            ]
        };
        rows(&["CHECK", "RESULT", "DETAIL", "WHAT TO DO"], self.checks.iter().map(row))
    }
}

/// One thing that must be right.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    detail: String,
    /// What to do; also where something is right but worth a look.
    advice: Option<&'static str>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, ok: true, detail: detail.into(), advice: None }
    }

    fn failed(name: &'static str, detail: impl Into<String>, advice: &'static str) -> Self {
        Self { name, ok: false, detail: detail.into(), advice: Some(advice) }
    }

    fn require(name: &'static str, ok: bool, detail: String, advice: &'static str) -> Self {
        if ok { Self::ok(name, detail) } else { Self::failed(name, detail, advice) }
    }
}

fn configuration(config: &ClientConfig) -> Check {
    let ClientConfig { endpoint, instance, ca, certificate, key } = config;
    let unreadable: Vec<_> = [ca, certificate, key]
        .into_iter()
        .filter_map(|path| fs::read(path).err().map(|error| format!("{}: {error}", path.display())))
        .collect();
    if unreadable.is_empty() {
        return Check::ok("configuration", format!("instance {instance} at {endpoint}"));
    }
    let advice = "correct the paths in client.toml, or who may read the files";
    Check::failed("configuration", unreadable.join("\n"), advice)
}

fn certificate(config: &ClientConfig) -> Check {
    let advice = "get a certificate that is valid now and set it in client.toml";
    let path = config.certificate.display();
    let Ok(pem) = fs::read(&config.certificate) else {
        return Check::failed("certificate", format!("cannot read {path}"), advice);
    };
    let Ok((_, block)) = parse_x509_pem(&pem) else {
        return Check::failed("certificate", format!("{path} is not PEM"), advice);
    };
    let Ok(certificate) = block.parse_x509() else {
        return Check::failed("certificate", format!("{path} holds no certificate"), advice);
    };
    let until =
        prost_types::Timestamp { seconds: certificate.validity().not_after.timestamp(), nanos: 0 };
    let until = human_time(rfc3339(&until).as_ref());
    let detail = format!("{}, valid until {until}", certificate.subject());
    Check::require("certificate", certificate.validity().is_valid(), detail, advice)
}

fn server(info: pb::ServerInfo) -> Check {
    let pb::ServerInfo { version, boot_id: _, start_time, profile, key_count, audit_event_count } =
        info;
    let since = human_time(start_time.as_ref().and_then(rfc3339).as_ref());
    let detail = format!(
        "rootkeyd {version}, profile {profile}, since {since}; \
         {key_count} root keys, {audit_event_count} audit records"
    );
    Check::ok("daemon", detail)
}

fn hsm(status: pb::HsmStatus) -> Vec<Check> {
    let pb::HsmStatus {
        ready,
        problem,
        module,
        library,
        slot,
        token_label,
        token_serial,
        workers,
        objects,
        orphans,
        missing,
        mechanisms,
        round_trip,
        round_trip_micros,
        findings,
        wrong,
        doubled,
        resurrected,
        unfinished,
        torn,
        wrapped,
        wrapping_problem,
    } = status;
    let used: Vec<_> = mechanisms
        .into_iter()
        .filter(|mechanism| !mechanism.used_for.is_empty())
        .map(|pb::hsm_status::Mechanism { name, used_for }| format!("{name}: {used_for}"))
        .collect();
    let problem = if ready { "ready".to_owned() } else { or_nothing(&problem) };
    let trip = match round_trip {
        true => format!("encrypted and decrypted in {round_trip_micros} µs"),
        false => "a session key could not be made, or did not decrypt what it encrypted".to_owned(),
    };
    let told = |kind, n: u64, what: &str| with_findings(format!("{n} {what}"), &findings, kind);
    // What is worth a look and yet is as it should be.
    let noted = |name, kind, n, what, advice| Check {
        advice: (n > 0).then_some(advice),
        ..Check::ok(name, told(kind, n, what))
    };
    let needed = |name, kind, n: u64, what, advice| {
        Check::require(name, n == 0, told(kind, n, what), advice)
    };
    vec![
        Check::require("hsm", ready, problem, "do what the detail says, then run doctor again"),
        Check::require(
            "module",
            !module.is_empty(),
            or_nothing(&module),
            "set hsm.module in the daemon's configuration to the PKCS#11 library",
        ),
        Check::require(
            "library",
            !library.is_empty(),
            or_nothing(&library),
            "check that the module loads: pkcs11-tool --module MODULE --show-info",
        ),
        Check::ok("slot", slot.to_string()),
        Check::require(
            "token",
            !token_label.is_empty() || !token_serial.is_empty(),
            format!("{}, serial {}", or_nothing(&token_label), or_nothing(&token_serial)),
            "check that the token is there: pkcs11-tool --module MODULE --list-slots",
        ),
        Check::require(
            "mechanisms",
            !used.is_empty(),
            or_nothing(&used.join("\n")),
            "the token lacks AES-GCM; use one that has it",
        ),
        Check::require(
            "workers",
            workers > 0,
            workers.to_string(),
            "no session is open; see the daemon's log for why",
        ),
        Check::ok("objects", format!("{objects} root key objects in the token")),
        noted(
            "orphans",
            Kind::Orphan,
            orphans,
            "objects that no key version names",
            "no harm; look whose they are before anything is removed by hand",
        ),
        needed(
            "missing",
            Kind::Missing,
            missing,
            "key versions without their object, or master keys, that the token does not show",
            "restore the token from its backup; what these versions wrapped cannot be unwrapped",
        ),
        needed(
            "wrong",
            Kind::Wrong,
            wrong,
            "key versions whose object, or wrapped form, is not the key that it was",
            "restore the token, or the store, from its backup; these versions are not used",
        ),
        needed(
            "doubled",
            Kind::Doubled,
            doubled,
            "CKA_IDs that two objects have",
            "find out which one was copied in, take it out, and start rootkeyd again",
        ),
        needed(
            "resurrected",
            Kind::Resurrected,
            resurrected,
            "objects of purged keys were there again and are destroyed",
            "find out which backup of the token holds them, or why files were not removed",
        ),
        noted(
            "unfinished",
            Kind::Unfinished,
            unfinished,
            "changes that were cut short and are not undone yet",
            "they are undone by themselves while the HSM is up; the daemon's log says why not",
        ),
        torn_files(torn, &findings),
        Check::require(
            "wrapped",
            wrapping_problem.is_empty(),
            if wrapping_problem.is_empty() {
                format!("{wrapped} key versions are kept in the store, wrapped")
            } else {
                wrapping_problem
            },
            "set hsm.residency to \"token\", or use a token that wraps safely",
        ),
        Check::require(
            "round trip",
            round_trip,
            trip,
            "look at the HSM and at the daemon's log; nothing can be unwrapped",
        ),
    ]
}

/// What was found, one a line below what it is.
fn with_findings(summary: String, findings: &[Finding], kind: Kind) -> String {
    let found = findings.iter().filter(|finding| finding.kind() == kind);
    let lines = found.map(|Finding { kind: _, object, subject }| {
        [object.as_str(), subject.as_str()].join(" ").trim().to_owned()
    });
    std::iter::once(summary).chain(lines).collect::<Vec<_>>().join("\n")
}

fn torn_files(torn: Option<u64>, findings: &[Finding]) -> Check {
    let Some(torn) = torn else {
        return Check::ok("torn", "not looked for: the token is not in files that are known");
    };
    let summary = format!("{torn} object files of the token are empty");
    let check = Check::ok("torn", with_findings(summary, findings, Kind::Torn));
    let advice = "no harm if no version is missing; a crash left them, and they can be removed";
    Check { advice: (torn > 0).then_some(advice), ..check }
}

fn refused(name: &'static str, refusal: &Refusal) -> Check {
    let advice = match refusal.reason.as_str() {
        "PERMISSION_DENIED" => "use the identity of a Manager, such as --identity admin",
        "UNAUTHENTICATED" => "use a certificate that the daemon's authority signed",
        _ => "see the daemon's log",
    };
    Check::failed(name, format!("{}: {}", refusal.reason, refusal.message), advice)
}

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl doctor
  rootkeyctl --identity admin --output json doctor

Needs the role Manager of any instance. Exits with 1 if a check failed.";

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> pb::HsmStatus {
        pb::HsmStatus {
            ready: true,
            problem: String::new(),
            module: "/usr/lib/softhsm/libsofthsm2.so".to_owned(),
            library: "SoftHSM 2.6".to_owned(),
            slot: 3,
            token_label: "rootkeyd".to_owned(),
            token_serial: "1234".to_owned(),
            workers: 4,
            objects: 2,
            orphans: 1,
            missing: 0,
            mechanisms: vec![pb::hsm_status::Mechanism {
                name: "CKM_AES_GCM".to_owned(),
                used_for: "wrap and unwrap DEKs".to_owned(),
            }],
            round_trip: true,
            round_trip_micros: 180,
            findings: vec![Finding {
                kind: Kind::Orphan.into(),
                object: "0f3c".to_owned(),
                subject: String::new(),
            }],
            torn: Some(0),
            ..Default::default()
        }
    }

    fn failures(status: pb::HsmStatus) -> Vec<&'static str> {
        hsm(status).into_iter().filter(|check| !check.ok).map(|check| check.name).collect()
    }

    #[test]
    fn a_healthy_hsm_passes_even_with_orphans() {
        assert!(failures(healthy()).is_empty());
        let table = Report { ready: true, checks: hsm(healthy()) }.table().to_string();
        assert!(table.contains("180 µs") && table.contains("CKM_AES_GCM: wrap"), "{table}");
        assert!(table.contains("0f3c"), "{table}");
        assert!(!table.contains("FAIL"));
    }

    #[test]
    fn what_is_wrong_fails_its_own_line() {
        let missing = pb::HsmStatus { missing: 2, ..healthy() };
        assert_eq!(failures(missing), ["missing"]);
        let broken = pb::HsmStatus { ready: false, round_trip: false, ..healthy() };
        assert_eq!(failures(broken), ["hsm", "round trip"]);
        let untrue = pb::HsmStatus { wrong: 1, doubled: 1, resurrected: 1, ..healthy() };
        assert_eq!(failures(untrue), ["wrong", "doubled", "resurrected"]);
        let unsafe_token = pb::HsmStatus { wrapping_problem: "no".to_owned(), ..healthy() };
        assert_eq!(failures(unsafe_token), ["wrapped"]);
        let cut_short = pb::HsmStatus { unfinished: 1, torn: Some(3), ..healthy() };
        assert!(failures(cut_short).is_empty());
    }

    #[test]
    fn every_failed_line_says_what_to_do() {
        let checks = hsm(pb::HsmStatus::default());
        assert!(checks.iter().all(|check| check.ok || check.advice.is_some()));
    }
}
