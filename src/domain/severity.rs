//! How grave a record of the audit log is: by the HTTP code of its outcome if
//! that has a level of its own, else by its action. Pure tables; computed when a record
//! is shown, so the records themselves do not change.
//!
//! Source: `facts/key-protect.md` section 10, "Severity by action".

/// How grave a record is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// Nothing to look at.
    Normal,
    /// Somebody should look at it.
    Warning,
    /// Somebody should look at it now.
    Critical,
}

impl Severity {
    /// Of a record with that action, whose outcome has that HTTP code. A code that has
    /// a level of its own decides, whatever the action.
    pub fn of(action: &str, http_code: u16) -> Self {
        Self::of_code(http_code).unwrap_or_else(|| Self::of_action(action))
    }

    fn of_action(action: &str) -> Self {
        let row = BY_ACTION.iter().find(|(name, _)| *name == action);
        row.map_or(Self::Normal, |(_, severity)| *severity)
    }

    fn of_code(code: u16) -> Option<Self> {
        let row = BY_CODE.iter().find(|(number, _)| *number == code);
        row.map(|(_, severity)| *severity)
    }
}

/// What is not here is Normal.
const BY_ACTION: [(&str, Severity); 10] = [
    ("kms.secrets.delete", Severity::Critical),
    ("kms.registrations.delete", Severity::Critical),
    ("kms.secrets.rotate", Severity::Warning),
    ("kms.secrets.restore", Severity::Warning),
    ("kms.secrets.enable", Severity::Warning),
    ("kms.secrets.disable", Severity::Warning),
    ("kms.secrets.setkeyfordeletion", Severity::Warning),
    ("kms.secrets.unsetkeyfordeletion", Severity::Warning),
    ("kms.policies.write", Severity::Warning),
    ("kms.instance-policies.write", Severity::Warning),
];

/// What is not here leaves the decision to the action.
const BY_CODE: [(u16, Severity); 10] = [
    (401, Severity::Critical),
    (403, Severity::Critical),
    (503, Severity::Critical),
    (507, Severity::Critical),
    (400, Severity::Warning),
    (409, Severity::Warning),
    (424, Severity::Warning),
    (502, Severity::Warning),
    (504, Severity::Warning),
    (505, Severity::Warning),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_decides_before_the_action() {
        let cases = [
            ("kms.secrets.unwrap", 200, Severity::Normal),
            ("kms.secrets.unwrap", 401, Severity::Critical),
            ("kms.secrets.unwrap", 409, Severity::Warning),
            ("kms.secrets.unwrap", 404, Severity::Normal),
            ("kms.secrets.delete", 200, Severity::Critical),
            ("kms.secrets.delete", 404, Severity::Critical),
            ("kms.secrets.delete", 409, Severity::Warning),
            ("kms.secrets.disable", 200, Severity::Warning),
            ("kms.secrets.disable", 503, Severity::Critical),
            ("kms.instance-policies.write", 200, Severity::Warning),
            ("kms.registrations.delete", 200, Severity::Critical),
            ("rootkeyd.audit.list", 200, Severity::Normal),
        ];
        for (action, code, expected) in cases {
            assert_eq!(Severity::of(action, code), expected, "{action} {code}");
        }
    }
}
