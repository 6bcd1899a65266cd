//! The OCI `user` field, resolved in the image's own /etc/passwd and /etc/group.
//!
//! The rules are those of container runtimes: `""` is root; a number that no line names is taken as it is; a name that
//! no line names is an error; supplementary groups come from /etc/group when no group was given.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// For `HOME`, when the image sets none.
    pub home: String,
}

pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (who, which) = match user.split_once(':') {
        Some((who, which)) => (who, Some(which)),
        None => (user, None),
    };
    let who = if who.is_empty() { "0" } else { who };
    let number: Option<u32> = who.parse().ok();
    let line = passwd.lines().map(fields).find(|line| {
        line.first() == Some(&who)
            || (number.is_some() && line.get(2).and_then(|uid| uid.parse().ok()) == number)
    });
    let field = |at: usize| line.as_ref().and_then(|line| line.get(at).copied());
    let uid = match (field(2).and_then(|uid| uid.parse().ok()), number) {
        (Some(uid), _) | (None, Some(uid)) => uid,
        (None, None) => return Err(format!("the image's user {who} is not in its /etc/passwd")),
    };
    let own_gid = field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0);
    let name = field(0).unwrap_or_default();
    let home = field(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    match which {
        Some(which) => Ok(User { uid, gid: resolve_group(which, group)?, groups: Vec::new(), home }),
        None => Ok(User { uid, gid: own_gid, groups: member_of(name, group), home }),
    }
}

fn resolve_group(which: &str, group: &str) -> Result<u32, String> {
    let named = group.lines().map(fields).find(|line| line.first() == Some(&which));
    let by_name = named.and_then(|line| line.get(2).and_then(|gid| gid.parse().ok()));
    by_name
        .or_else(|| which.parse().ok())
        .ok_or_else(|| format!("the image's group {which} is not in its /etc/group"))
}

fn member_of(name: &str, group: &str) -> Vec<u32> {
    if name.is_empty() {
        return Vec::new();
    }
    let lines = group.lines().map(fields);
    let mine = lines
        .filter(|line| line.get(3).is_some_and(|members| members.split(',').any(|member| member == name)));
    mine.filter_map(|line| line.get(2)?.parse().ok()).collect()
}

fn fields(line: &str) -> Vec<&str> {
    line.trim_end().split(':').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:40:other,web\nssl:x:41:web\n";

    #[test]
    fn every_form_of_the_field_is_resolved() {
        let user = |field: &str| resolve(field, PASSWD, GROUP);
        assert_eq!(user("").unwrap(), User { uid: 0, gid: 0, groups: vec![], home: "/root".into() });
        assert_eq!(
            user("web").unwrap(),
            User { uid: 33, gid: 34, groups: vec![40, 41], home: "/var/www".into() }
        );
        assert_eq!(user("33").unwrap(), user("web").unwrap());
        assert_eq!(
            user("web:ssl").unwrap(),
            User { uid: 33, gid: 41, groups: vec![], home: "/var/www".into() }
        );
        assert_eq!(
            user("1000:1000").unwrap(),
            User { uid: 1000, gid: 1000, groups: vec![], home: "/".into() }
        );
        assert_eq!(user("1000").unwrap().gid, 0);
    }

    #[test]
    fn a_name_that_the_image_does_not_know_is_refused() {
        assert!(resolve("nobody", PASSWD, GROUP).unwrap_err().contains("nobody"));
        assert!(resolve("web:nogroup", PASSWD, GROUP).unwrap_err().contains("nogroup"));
        assert!(resolve("web", "", "").is_err());
    }
}
