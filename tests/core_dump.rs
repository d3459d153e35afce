//! What is in the memory of the daemon after it has wrapped, unwrapped and refused: of no
//! DEK, and not of the PIN, is a fragment of 8 bytes left, but where
//! `docs/threat-model.md` says so.
//!
//! The memory is read as a core dump would hold it, from `/proc/PID/mem`: that takes
//! root, whom PR_SET_DUMPABLE does not stop.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

#[path = "common/chaos.rs"]
mod chaos;
mod common;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use common::{Client, Daemon, random, unwrap_request};
use futures_util::future::{join, join_all};
use futures_util::{StreamExt, stream};
use rootkeyd::api::pb;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tonic::Request;

/// Calls that are under way at a time.
const UNDER_WAY: usize = 64;
/// Connections of the test.
const CONNECTIONS: usize = 4;
/// Of an open connection these hold what went over it last: TLS's to read into, HTTP/2's
/// to read into, and HTTP/2's to write from (`docs/threat-model.md`).
const BUFFERS: usize = 3;
/// The longest of them, and a frame that begins at its end.
const BUFFER_BYTES: u64 = 17 * 1024;

/// A secret, or what is planted to be found.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Sought {
    what: &'static str,
    bytes: Vec<u8>,
}

/// A part of the daemon's memory.
#[derive(Clone, Debug)]
struct Region {
    start: u64,
    end: u64,
    name: String,
}

/// Fragments that stand together in memory.
#[derive(Debug)]
struct Hit {
    what: &'static str,
    secret: usize,
    region: usize,
    address: u64,
    length: usize,
}

/// Finds every fragment of 8 bytes of many secrets at once.
struct Search {
    sought: Vec<Sought>,
    fragments: HashMap<u64, usize>,
    /// For nearly every place it says that nothing begins there.
    bits: Vec<u64>,
}

impl Search {
    fn new(sought: Vec<Sought>) -> Self {
        let mut search = Self { sought, fragments: HashMap::new(), bits: vec![0; 1 << 20] };
        for (secret, Sought { bytes, .. }) in search.sought.iter().enumerate() {
            for bytes in bytes.windows(8) {
                let fragment = u64::from_le_bytes(bytes.try_into().unwrap());
                search.fragments.insert(fragment, secret);
                let (word, bit) = place(fragment);
                search.bits[word] |= bit;
            }
        }
        search
    }

    /// Hits in `bytes`, which begin at `address`.
    fn bytes(&self, region: usize, address: u64, bytes: &[u8]) -> Vec<Hit> {
        let mut hits = Vec::<Hit>::new();
        let Some((first, rest)) = bytes.split_first_chunk::<8>() else { return hits };
        let mut fragment = u64::from_le_bytes(*first);
        for (at, next) in (address..).zip(rest.iter().copied().map(u64::from).chain([0])) {
            let (word, bit) = place(fragment);
            if self.bits[word] & bit != 0
                && let Some(secret) = self.fragments.get(&fragment)
            {
                match hits.last_mut() {
                    Some(hit) if hit.secret == *secret && at - hit.address < 512 => {
                        hit.length = usize::try_from(at - hit.address).unwrap() + 8;
                    }
                    Some(_) | None => {
                        let what = self.sought[*secret].what;
                        hits.push(Hit { what, secret: *secret, region, address: at, length: 8 });
                    }
                }
            }
            fragment = fragment >> 8 | next << 56;
        }
        hits
    }
}

/// Where the bit of a fragment is.
fn place(fragment: u64) -> (usize, u64) {
    let hash = fragment.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 38;
    (usize::try_from(hash >> 6).unwrap(), 1 << (hash & 63))
}

/// All that can be read of the memory of a process.
fn regions(pid: u32) -> Vec<Region> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let region = |line: &str| {
        let mut parts = line.split_whitespace();
        let (start, end) = parts.next().unwrap().split_once('-').unwrap();
        let readable = parts.next().unwrap().starts_with('r');
        let name = parts.nth(3).unwrap_or("anonymous").to_owned();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        // The kernel's own, without anything of ours.
        let ours = !["[vvar]", "[vvar_vclock]", "[vsyscall]"].contains(&name.as_str());
        (readable && ours).then(|| Region { start: number(start), end: number(end), name })
    };
    maps.lines().filter_map(region).collect()
}

/// What is found of secrets, by the address; what is planted must be among it.
fn scan(daemon: &Daemon, search: &Search, when: &str) -> Vec<Hit> {
    let pid = daemon.pid();
    let regions = regions(pid);
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut hits, mut searched) = (Vec::new(), 0);
    for (number, Region { start, end, .. }) in regions.iter().enumerate() {
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        let mut at = 0;
        // What is gone meanwhile holds nothing.
        while let Ok(read @ 1..) =
            memory.read_at(&mut bytes[at..], start + u64::try_from(at).unwrap())
        {
            at += read;
        }
        searched += at;
        hits.extend(search.bytes(number, *start, &bytes[..at]));
    }
    eprintln!("{when}: {} hits in {searched} bytes", hits.len());
    for Hit { what, secret, region, address, length } in &hits {
        let Region { start, name, .. } = &regions[*region];
        eprintln!("  {what} {secret}: {length} bytes at {start:x} + {:x} {name}", address - start);
    }
    let planted = hits.extract_if(.., |hit| hit.what == "planted");
    assert_ne!(planted.count(), 0, "what is planted was not found");
    hits
}

/// What the daemon is made to do, and the secrets that it met.
struct Load {
    key: String,
    sought: Vec<Sought>,
}

impl Load {
    fn new_deks(&mut self, count: usize) -> Vec<[u8; 48]> {
        let deks: Vec<_> = (0..count).map(|_| random()).collect();
        self.sought.extend(deks.iter().map(|dek| Sought { what: "DEK", bytes: dek.to_vec() }));
        deks
    }

    async fn wrap(&mut self, client: &Client, count: usize) -> Vec<Vec<u8>> {
        let deks = self.new_deks(count);
        let wrap = |dek: [u8; 48]| {
            let (mut client, key) = (client.clone(), self.key.clone());
            async move { client.wrap(&key, &dek, &[]).await.unwrap() }
        };
        stream::iter(deks).map(wrap).buffered(UNDER_WAY).collect().await
    }

    /// One by one, on streams and in batches.
    async fn unwrap(&self, client: &Client, wrapped: &[Vec<u8>]) {
        let (single, rest) = wrapped.split_at(wrapped.len() / 2);
        let (streamed, batched) = rest.split_at(rest.len() / 2);
        let request = |wrapped: &Vec<u8>| unwrap_request(&self.key, wrapped, &[]);
        let unwrap = |wrapped| {
            let (mut client, request) = (client.clone(), request(wrapped));
            async move { client.crypto.unwrap_dek(request).await.unwrap().into_inner().dek.len() }
        };
        let lengths: Vec<_> = stream::iter(single).map(unwrap).buffered(UNDER_WAY).collect().await;
        assert_eq!(lengths, vec![48; single.len()]);
        let numbered = (0..).zip(streamed.iter().map(request));
        let requests: Vec<_> = numbered
            .map(|(id, request)| pb::StreamUnwrapDeksRequest { id, request: Some(request) })
            .collect();
        let answers = client.clone().crypto.stream_unwrap_deks(stream::iter(requests)).await;
        let answers = answers.unwrap().into_inner().map(|answer| right(answer.unwrap().result));
        assert_eq!(answers.collect::<Vec<_>>().await, vec![true; streamed.len()]);
        for some in batched.chunks(100) {
            let requests = some.iter().map(request).collect();
            let request = pb::BatchUnwrapDeksRequest { requests };
            let answers = client.clone().crypto.batch_unwrap_deks(request).await.unwrap();
            assert!(answers.into_inner().results.into_iter().all(|result| right(Some(result))));
        }
    }

    async fn generate(&mut self, client: &mut Client, count: usize) {
        for _ in 0..count {
            let key = self.key.clone();
            let request = pb::GenerateDekRequest { key, size_bytes: 48, ..Default::default() };
            let made = client.crypto.generate_dek(request).await.unwrap().into_inner();
            self.sought.push(Sought { what: "generated DEK", bytes: made.dek.to_vec() });
        }
    }

    /// Whose answers nobody waits for, and that are refused in every place where a DEK
    /// is already there.
    async fn fail(&mut self, client: &mut Client, wrapped: &[Vec<u8>]) {
        for (number, wrapped) in wrapped.iter().enumerate() {
            let dek = self.new_deks(1)[0].to_vec();
            let wait = Duration::from_micros(200 * u64::try_from(number % 20).unwrap());
            let key = self.key.clone();
            let wrap = pb::WrapDekRequest { key, dek, ..Default::default() };
            let mut late = Request::new(wrap.clone());
            late.set_timeout(wait);
            drop(client.crypto.wrap_dek(late).await);
            let mut unwrap = Request::new(unwrap_request(&self.key, wrapped, &[]));
            unwrap.set_timeout(wait);
            drop(client.crypto.unwrap_dek(unwrap).await);
            // The client goes in the middle.
            drop(tokio::time::timeout(wait, client.crypto.wrap_dek(wrap.clone())).await);
            let unwrap = client.crypto.unwrap_dek(unwrap_request(&self.key, wrapped, &[]));
            drop(tokio::time::timeout(wait, unwrap).await);
            let other = wrap.key.replace("/keys/", "/keys/no-");
            let refused = pb::WrapDekRequest { key: other, ..wrap.clone() };
            client.crypto.wrap_dek(refused).await.unwrap_err();
            let refused = pb::WrapDekRequest { aad: vec![vec![0; 256]], ..wrap };
            client.crypto.wrap_dek(refused).await.unwrap_err();
            client.unwrap(&self.key, wrapped, &[b"of another"]).await.unwrap_err();
        }
        let long = self.new_deks(200).concat();
        client.wrap(&self.key, &long, &[]).await.unwrap_err();
        let unwraps = wrapped.iter().map(|wrapped| {
            let (mut client, request) = (client.clone(), unwrap_request(&self.key, wrapped, &[]));
            async move { drop(client.crypto.unwrap_dek(request).await) }
        });
        let (mut admin, key) = (client.clone(), self.key.clone());
        let disable = async move { admin.disable(&key).await.unwrap() };
        join(join_all(unwraps), disable).await;
    }
}

fn right(result: Option<pb::UnwrapDekResult>) -> bool {
    matches!(result.unwrap().outcome, Some(Outcome::Response(response)) if response.dek.len() == 48)
}

#[tokio::test]
async fn nothing_is_left_of_what_was_unwrapped() {
    if !rustix::process::getuid().is_root() {
        return eprintln!("only root may read the memory of the daemon: not run");
    }
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let planted = hex::encode(random::<16>());
    let key = admin.create(&planted).await.name;
    let pin = fs::read(daemon.dir.join("pin")).unwrap();
    let planted = Sought { what: "planted", bytes: planted.into() };
    let sought = vec![planted, Sought { what: "PIN", bytes: pin }];
    let mut load = Load { key, sought };

    let rounds = chaos::rounds(2_000, 10_000);
    let count = usize::try_from(rounds).unwrap();
    let clients = [daemon.client("admin").await, daemon.client("admin").await];
    let wrapped = load.wrap(&clients[0], count).await;
    load.unwrap(&clients[1], &wrapped).await;
    load.generate(&mut admin, count / 20).await;
    let mut hasty = daemon.client("admin").await;
    load.fail(&mut hasty, &wrapped[..count / 20]).await;

    let search = Search::new(std::mem::take(&mut load.sought));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let open = scan(&daemon, &search, "with connections open");
    assert!(open.iter().all(|hit| hit.what != "PIN"), "{open:?}");
    let buffers = windows(&open);
    assert!(buffers <= CONNECTIONS * BUFFERS, "{buffers} buffers: {open:?}");
    drop((admin, clients, hasty));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let closed = scan(&daemon, &search, "with connections closed");
    assert!(closed.is_empty(), "{closed:?}");
    let (wrong, checked) = (0, u64::try_from(search.sought.len()).unwrap());
    let seen = chaos::Seen { faults: rounds / 20 * 7, checked, wrong, ..Default::default() };
    chaos::report("DEKs looked for in the daemon's memory", seen);
}

/// How many pieces of memory, each as long as the longest buffer, hold all hits.
fn windows(hits: &[Hit]) -> usize {
    let (mut count, mut end) = (0, 0);
    for hit in hits {
        if hit.address >= end {
            count += 1;
            end = hit.address + BUFFER_BYTES;
        }
    }
    count
}

/// A process that may be dumped or traced is one that a user's debugger can read.
#[test]
fn no_core_is_dumped_and_no_other_process_reads_the_memory() {
    let mut daemon = Daemon::start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(limit.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);

    daemon.terminate();
    daemon.start_by(as_anybody(&daemon.dev()));
    let reads = |pid: &str| {
        let mut cat = Command::new("sh");
        // Two commands, so that the shell stays and can be read by its child.
        cat.args(["-c", &format!("cat /proc/{pid}/environ && true")]);
        as_anybody(&cat).output().unwrap().status.success()
    };
    assert!(reads("$$"), "what is dumpable can be read");
    assert!(!reads(&daemon.pid().to_string()));

    assert!(!daemon.abort().core_dumped());
}

#[test]
fn memory_is_kept_from_swap_or_the_daemon_does_not_start() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    let config = daemon.dir.join("rootkeyd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let required = text.replace("lock = \"off\"", "lock = \"required\"");
    assert_ne!(text, required);
    fs::write(&config, required).unwrap();

    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -l 64; exec timeout 20 \"$@\"", "sh"]);
    let anybody = as_anybody(&daemon.by_config());
    limited.arg(anybody.get_program()).args(anybody.get_args());
    limited.envs(anybody.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("LimitMEMLOCK=infinity"), "{said}");

    let locked = |daemon: &Daemon| {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    if rustix::process::getuid().is_root() {
        daemon.start_by(daemon.by_config());
        assert!(locked(&daemon) > 1024, "{} KiB", locked(&daemon));
    }
}

/// The same command without what root may do beyond others.
fn as_anybody(command: &Command) -> Command {
    let mut same = match rustix::process::getuid().is_root() {
        true => Command::new("setpriv"),
        false => Command::new("env"),
    };
    if rustix::process::getuid().is_root() {
        same.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    same.arg(command.get_program()).args(command.get_args());
    same.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    same
}
