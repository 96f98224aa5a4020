//! Pure: which profiles the AWS files have and what they want of their user, for errors about them.

/// The profiles of the two files' texts, each once, in order.
pub(super) fn names(config: &str, credentials: &str) -> Vec<String> {
    let of_config = sections(config).filter_map(|section| match section.split_once(char::is_whitespace) {
        Some(("profile", name)) => Some(name.trim()),
        // `sso-session` and `services` are no profiles.
        Some(_) => None,
        None => (section == "default").then_some(section),
    });
    let mut names: Vec<String> = of_config.chain(sections(credentials)).map(unquoted).collect();
    names.sort();
    names.dedup();
    names
}

/// The profiles of the config file that ask for an MFA code.
pub(super) fn with_mfa(config: &str) -> Vec<String> {
    let mut section = None;
    let mut found = Vec::new();
    for line in config.lines().map(str::trim) {
        if line.starts_with('[') {
            section = names(line, "").pop();
        } else if line.split_once('=').is_some_and(|(key, _)| key.trim() == "mfa_serial") {
            found.extend(section.take());
        }
    }
    found
}

fn sections(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| Some(line.trim().strip_prefix('[')?.split_once(']')?.0.trim()))
}

fn unquoted(name: &str) -> String {
    let bare = ['"', '\''].iter().find_map(|quote| name.strip_prefix(*quote)?.strip_suffix(*quote));
    bare.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_that_want_an_mfa_code_are_known() {
        let config = "mfa_serial = x\n[profile a]\nregion = x\n[profile b]\nmfa_serial = arn\n[default]\n mfa_serial=y\n";
        assert_eq!(with_mfa(config), ["b", "default"]);
    }

    #[test]
    fn profiles_of_both_files_are_named_once() {
        let config = "# [profile no]\n[default]\nregion = x\n[profile dev]\n[sso-session corp]\n[ profile 'my prod' ] ; x\n[dev2]\n";
        let credentials = "[dev]\naws_access_key_id = x\n[old]\n";
        assert_eq!(names(config, credentials), ["default", "dev", "my prod", "old"]);
        assert!(names("", "not a file").is_empty());
    }
}
