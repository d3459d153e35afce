//! Questions before what cannot be undone. Asked on a terminal, with `--yes` not
//! at all; where there is no terminal nobody can answer, so nothing is done.

use std::io::{self, BufRead, IsTerminal, Write};

use super::{failure::Failure, output::note};

/// A question before something is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// What then happens to it, such as `deleted`.
    pub(super) done: &'static str,
    /// What is lost by it, in sentences.
    pub(super) loss: &'a str,
    /// What has to be typed.
    pub(super) answer: &'a str,
}

impl Question<'_> {
    /// Asks, unless it was answered with `--yes`.
    pub(super) fn ask(self, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        can_ask(self.done)?;
        let Self { done, loss, answer } = self;
        note(&format!("{loss} Type {answer} to have it {done}:"));
        drop(io::stderr().flush());
        let mut typed = String::new();
        io::stdin().lock().read_line(&mut typed).map_err(Failure::Stdin)?;
        if typed.trim() == answer.trim() { Ok(()) } else { Err(Failure::Unconfirmed { done }) }
    }
}

/// Refuses where nobody could answer.
pub(super) fn can_ask(done: &'static str) -> Result<(), Failure> {
    if io::stdin().is_terminal() { Ok(()) } else { Err(Failure::Unconfirmed { done }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_yes_and_without_a_terminal_nothing_is_done() {
        let question = Question { done: "purged", loss: "It is final.", answer: "Volumes" };
        if !io::stdin().is_terminal() {
            let failure = question.ask(false).unwrap_err();
            assert!(failure.line().starts_with("NOT_CONFIRMED: not purged: "), "{failure}");
        }
        assert!(question.ask(true).is_ok());
    }
}
