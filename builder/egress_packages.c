#include "builder/egress.h"

#include <stddef.h>

const char *const egress_package_hosts[] = {
    /* distributions */
    "*.debian.org", "*.ubuntu.com", "ppa.launchpadcontent.net", "*.alpinelinux.org",
    "*.fedoraproject.org", "*.centos.org", "*.rockylinux.org", "*.almalinux.org", "*.opensuse.org",
    "*.archlinux.org", "geo.mirror.pkgbuild.com", "cdn.amazonlinux.com",
    /* Python */
    "pypi.org", "files.pythonhosted.org", "conda.anaconda.org", "repo.anaconda.com",
    /* JavaScript */
    "registry.npmjs.org", "registry.yarnpkg.com", "jsr.io", "npm.jsr.io",
    /* Rust, Go, Ruby */
    "crates.io", "index.crates.io", "static.crates.io", "proxy.golang.org", "sum.golang.org",
    "rubygems.org", "*.rubygems.org",
    /* Java, .NET, PHP */
    "repo.maven.apache.org", "repo1.maven.org", "plugins.gradle.org", "services.gradle.org",
    "api.nuget.org", "www.nuget.org", "packagist.org", "repo.packagist.org",
    /* Elixir, Perl, R, Haskell, Julia */
    "hex.pm", "repo.hex.pm", "builds.hex.pm", "www.cpan.org", "cpan.metacpan.org",
    "cran.r-project.org", "cloud.r-project.org", "hackage.haskell.org", "pkg.julialang.org", NULL};
