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
    settings(config, in_config)
        .filter(|(_, key, _)| *key == "mfa_serial")
        .map(|(profile, ..)| profile)
        .collect()
}

/// What the config file says of `key` for a profile.
pub(super) fn setting<'a>(config: &'a str, profile: &str, key: &str) -> Option<&'a str> {
    find(settings(config, in_config), profile, key)
}

/// What the credentials file says of `key` for a profile.
pub(super) fn credential<'a>(credentials: &'a str, profile: &str, key: &str) -> Option<&'a str> {
    find(settings(credentials, in_credentials), profile, key)
}

fn find<'a>(
    mut settings: impl Iterator<Item = (String, &'a str, &'a str)>,
    profile: &str,
    key: &str,
) -> Option<&'a str> {
    settings.find(|(of, name, _)| of == profile && *name == key).map(|(.., value)| value)
}

/// The profile that a heading of the config file begins.
fn in_config(heading: &str) -> Option<String> {
    names(heading, "").pop()
}

fn in_credentials(heading: &str) -> Option<String> {
    names("", heading).pop()
}

/// The lines of profiles: whose, key and value.
fn settings(
    text: &str,
    profile_of: fn(&str) -> Option<String>,
) -> impl Iterator<Item = (String, &str, &str)> {
    let mut profile = None;
    text.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with('[') {
            profile = profile_of(line);
            return None;
        }
        let (key, value) = line.split_once('=')?;
        let value = [" #", " ;"]
            .into_iter()
            .fold(value, |value, comment| value.split_once(comment).map_or(value, |(value, _)| value));
        Some((profile.clone()?, key.trim(), value.trim()))
    })
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
    fn settings_are_those_of_their_profile() {
        let config = "[default]\nca_bundle=/a\n[profile dev]\n ca_bundle = /b c.pem ; ours\nregion =\n[services x]\nca_bundle=/c\n";
        assert_eq!(setting(config, "default", "ca_bundle"), Some("/a"));
        assert_eq!(setting(config, "dev", "ca_bundle"), Some("/b c.pem"));
        assert_eq!(setting(config, "dev", "region"), Some(""));
        assert_eq!(setting(config, "x", "ca_bundle"), None);
        assert_eq!(credential("[dev]\nkey = v # w\n[profile dev]\nkey=x\n", "dev", "key"), Some("v"));
    }

    #[test]
    fn profiles_of_both_files_are_named_once() {
        let config = "# [profile no]\n[default]\nregion = x\n[profile dev]\n[sso-session corp]\n[ profile 'my prod' ] ; x\n[dev2]\n";
        let credentials = "[dev]\naws_access_key_id = x\n[old]\n";
        assert_eq!(names(config, credentials), ["default", "dev", "my prod", "old"]);
        assert!(names("", "not a file").is_empty());
    }
}
