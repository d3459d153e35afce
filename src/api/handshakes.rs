//! The log of handshakes that were refused: a line each with its reason, and no more
//! than so many a second, since whoever reaches the port can make them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// See the module.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<Window>);

#[derive(Default)]
struct Window {
    began: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Handshakes {
    /// Says that there is no connection, and why; `reason` is ours or rustls's.
    pub(super) fn tell(&self, address: SocketAddr, reason: &str) {
        let Some(untold) = self.0.lock().take(Instant::now()) else { return };
        if untold > 0 {
            tracing::warn!(untold, "more TLS handshakes were refused than there are lines for");
        }
        tracing::warn!(%address, reason, "a TLS handshake was refused");
    }
}

impl Window {
    /// How many were not told of before this one; `None` if it is not told of.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            (self.began, self.told) = (Some(now), 0);
        }
        if self.told >= MOST_LINES {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

const WINDOW: Duration = Duration::from_secs(1);
const MOST_LINES: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_ten_lines_a_second_and_the_rest_is_counted() {
        let (mut window, now) = (Window::default(), Instant::now());
        let told = (0..100).filter(|_| window.take(now).is_some()).count();
        assert_eq!(told, 10);
        assert_eq!(window.take(now + WINDOW), Some(90));
        assert_eq!(window.take(now + WINDOW), Some(0));
    }
}
