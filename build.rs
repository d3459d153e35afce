//! Compiles `proto/` to Rust. protox parses the files, so no protoc is needed.

use std::path::PathBuf;

use prost::Message;

/// Messages that hold a DEK: they get no derived `Debug`; the one they have is
/// written by hand in `src/api/pb.rs` and prints lengths only.
const SECRET_MESSAGES: [&str; 3] = ["WrapDekRequest", "UnwrapDekResponse", "GenerateDekResponse"];

/// Fields that are `Bytes` and not `Vec<u8>`: what the daemon answers is handed
/// to HTTP/2 without a copy, and a DEK in it is wiped when the last handle goes.
/// A DEK that comes in stays a `Vec<u8>`, which the daemon can wipe itself.
const BYTES_FIELDS: [&str; 6] = [
    "WrapDekResponse.wrapped_dek",
    "UnwrapDekResponse.dek",
    "UnwrapDekResponse.rewrapped_dek",
    "RewrapDekResponse.wrapped_dek",
    "GenerateDekResponse.dek",
    "GenerateDekResponse.wrapped_dek",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "crypto",
        "keys",
        "rings",
        "import",
        "policies",
        "registrations",
        "resources",
        "events",
        "instances",
        "access",
        "audit",
        "admin",
    ];
    let files = files.map(|name| format!("rootkeyd/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("rootkeyd.v1.bin"), descriptors.encode_to_vec())?;
    let mut builder = tonic_prost_build::configure()
        .skip_debug(SECRET_MESSAGES.map(|name| format!("rootkeyd.v1.{name}")));
    for field in BYTES_FIELDS {
        builder = builder.bytes(format!("rootkeyd.v1.{field}"));
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}
