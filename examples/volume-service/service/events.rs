//! What the service does when something happened to a root key. `serve` and the tests
//! call the one function `answer`.
//!
//! An event that comes twice does nothing the second time.

use rootkeyd::client::{KeyEvent, KeyEventType};

use super::{
    VolumeService,
    failure::Failure,
    metadata::{Attachment, Kind, Mark, Metadata, Resource},
};

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Task {
    /// Show that the key is disabled. What runs goes on.
    Mark,
    /// Show that it is not any more. Nothing is started.
    Clear,
    /// Stop the servers, suspend the shares, close the volumes.
    Stop,
    /// Wrap the DEKs under the newest version.
    Rewrap,
    /// There is nothing to be done.
    Nothing,
}

impl VolumeService {
    /// Does what the event asks, and says at rootkeyd that it did, or why it could not.
    /// Returns what it did, in sentences.
    pub(crate) async fn answer(&self, event: &KeyEvent) -> Result<Vec<String>, Failure> {
        let done = self.handle(event).await;
        let failure = done.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.rootkeyd.acknowledge(event, &failure).await?;
        done
    }

    async fn handle(&self, event: &KeyEvent) -> Result<Vec<String>, Failure> {
        let mut metadata = self.lock()?;
        if event.id <= metadata.state.last_event {
            return Ok(vec![format!("event {} was dealt with already", event.id)]);
        }
        let done = match task(event) {
            Task::Mark => Ok(mark(&mut metadata, &event.key)),
            Task::Clear => Ok(clear(&mut metadata, &event.key)),
            Task::Stop => self.stop_all(&mut metadata, &event.key),
            Task::Rewrap => self.rewrap_all(&mut metadata, &event.key, &event.resource).await,
            Task::Nothing => Ok(Vec::new()),
        };
        // What was done is kept, whatever became of the rest.
        if done.is_ok() {
            metadata.state.last_event = event.id;
        }
        metadata.save()?;
        done
    }

    /// What the key protects is offline when this returns. One thing that cannot be
    /// stopped does not keep the others running.
    fn stop_all(&self, metadata: &mut Metadata, key: &str) -> Result<Vec<String>, Failure> {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for name in protected(metadata, key, "") {
            metadata.resource_mut(&name)?.mark = Some(Mark::KeyDeleted);
        }
        // A server ends when any of its volumes is of the key.
        for name in metadata.state.servers.keys().cloned().collect::<Vec<_>>() {
            let boot_volume = metadata.server(&name)?.boot_volume.clone();
            let mut volumes = metadata.attached(&name).into_iter().chain([boot_volume]);
            let deleted = |volume: String| metadata.resource(&volume).is_ok_and(|it| it.key == key);
            if volumes.any(deleted) && self.runs(&name) {
                match self.power_off(metadata, &name) {
                    Ok(()) => done.push(format!("server {name} is stopped")),
                    Err(error) => failed.push(format!("{name} ({error})")),
                }
            }
        }
        for name in protected(metadata, key, "") {
            let export = self.export(&name);
            if export.process.running().is_none() {
                continue;
            }
            let kind = metadata.resource(&name)?.kind;
            match export.close() {
                Ok(()) if kind == Kind::Share => done.push(format!("share {name} is suspended")),
                Ok(()) => done.push(format!("volume {name} is closed")),
                Err(error) => failed.push(format!("{name} ({error})")),
            }
        }
        if failed.is_empty() { Ok(done) } else { Err(Failure::Partly { failed }) }
    }

    /// Each DEK by itself: one that cannot be rewrapped still unwraps as it is.
    pub(super) async fn rewrap_all(
        &self,
        metadata: &mut Metadata,
        key: &str,
        resource: &str,
    ) -> Result<Vec<String>, Failure> {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for name in protected(metadata, key, resource) {
            match self.rewrap_one(metadata.resource_mut(&name)?).await {
                Ok(()) => done.push(format!("{name} is rewrapped")),
                Err(error) => failed.push(format!("{name} ({error})")),
            }
            // What was rewrapped is kept, whatever becomes of the rest.
            metadata.save()?;
        }
        if failed.is_empty() { Ok(done) } else { Err(Failure::Partly { failed }) }
    }
}

fn task(event: &KeyEvent) -> Task {
    match event.r#type() {
        KeyEventType::Disable => Task::Mark,
        KeyEventType::Enable | KeyEventType::Restore => Task::Clear,
        KeyEventType::Delete => Task::Stop,
        KeyEventType::Rotate | KeyEventType::Rewrap => Task::Rewrap,
        // What an expired key wrapped it still unwraps.
        KeyEventType::Expire | KeyEventType::Unspecified => Task::Nothing,
        KeyEventType::Sync => match event.key_state.as_str() {
            "suspended" => Task::Mark,
            "destroyed" => Task::Stop,
            _ => Task::Clear,
        },
    }
}

fn mark(metadata: &mut Metadata, key: &str) -> Vec<String> {
    let names = protected(metadata, key, "");
    for name in &names {
        if let Some(resource) = metadata.state.resources.get_mut(name) {
            resource.mark = Some(Mark::KeyDisabled);
        }
    }
    names.into_iter().map(|name| format!("{name}: its key is disabled")).collect()
}

/// Volumes that the deletion of the key took from their servers are given back, under
/// new attachment ids; they are opened when their server is started.
fn clear(metadata: &mut Metadata, key: &str) -> Vec<String> {
    let names = protected(metadata, key, "");
    for name in &names {
        let Some(resource) = metadata.state.resources.get_mut(name) else { continue };
        let mark = resource.mark.take();
        if let (Some(Mark::KeyDeleted), Some(attachment)) = (mark, &mut resource.attachment) {
            *attachment = Attachment::new(&attachment.server);
        }
    }
    names.into_iter().map(|name| format!("{name}: its key is active")).collect()
}

/// Names of the resources that a key protects; or of the one whose CRN is given.
fn protected(metadata: &Metadata, key: &str, resource: &str) -> Vec<String> {
    let wanted = |it: &Resource| it.key == key && (resource.is_empty() || it.crn == resource);
    let resources = metadata.state.resources.iter();
    resources.filter(|(_, it)| wanted(it)).map(|(name, _)| name.clone()).collect()
}
