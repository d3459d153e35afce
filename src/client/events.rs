//! `KeyEvents`: the events of the keys that protect a service's resources, on a
//! stream that is opened again, where it was, whenever it breaks.
//!
//! It decides nothing about an event. At least once: an event that was received and
//! not acknowledged comes again after a restart.

use std::time::Duration;

use tonic::Streaming;

use super::{Failed, KeyEvent, Refusal, Repeat, RetryPolicy, StorageClient, storage::random};

/// See [`StorageClient::events`].
///
/// ```no_run
/// # use rootkeyd::client::{Refusal, StorageClient};
/// # async fn serve(rootkeyd: StorageClient) -> Result<(), Refusal> {
/// let mut events = rootkeyd.events("");
/// loop {
///     let event = events.next().await?;
///     // Do what it asks, and then say so.
///     rootkeyd.acknowledge(&event, "").await?;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct KeyEvents {
    client: StorageClient,
    policy: RetryPolicy,
    resume_token: String,
    stream: Option<Streaming<KeyEvent>>,
    /// Attempts since the last event.
    attempts: u32,
}

impl KeyEvents {
    pub(super) fn new(client: StorageClient, policy: RetryPolicy, resume_token: String) -> Self {
        Self { client, policy, resume_token, stream: None, attempts: 0 }
    }

    /// Waits for the next event, for as long as it takes. May be dropped while it
    /// waits: nothing is lost.
    ///
    /// # Errors
    /// A refusal that waiting does not help against, such as PERMISSION_DENIED. It may
    /// be called again.
    pub async fn next(&mut self) -> Result<KeyEvent, Refusal> {
        loop {
            let failed = match self.receive().await {
                Ok(Some(event)) => {
                    self.attempts = 0;
                    self.resume_token.clone_from(&event.resume_token);
                    return Ok(event);
                }
                // The daemon stops: its successor is asked.
                Ok(None) => None,
                Err(failed) => Some(failed),
            };
            self.stream = None;
            self.attempts = self.attempts.saturating_add(1);
            let failed = failed.unwrap_or_else(ended);
            let waited = (self.attempts, Duration::MAX);
            let pause = self.policy.pause(&failed, Repeat::Harmless, waited, random());
            let Some(pause) = pause else { return Err(failed.refusal) };
            tracing::debug!(reason = failed.refusal.reason, ?pause, "watching again");
            tokio::time::sleep(pause).await;
        }
    }

    /// Of the last event: given to [`StorageClient::events`], it goes on after it.
    pub fn resume_token(&self) -> &str {
        &self.resume_token
    }

    async fn receive(&mut self) -> Result<Option<KeyEvent>, Failed> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(self.client.watch(&self.resume_token).await?),
        };
        Ok(stream.message().await?)
    }
}

fn ended() -> Failed {
    Failed { refusal: tonic::Status::unavailable("the stream ended").into(), lost: true }
}
