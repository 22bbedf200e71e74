"""The settings of HTTP survive the way to a child's command line and back."""

from octavo.shared.config import Config, parse, to_flags


def test_flags_that_are_read_back_give_the_same_settings() -> None:
    config = Config(
        model="org/model",
        ssl_certfile="a.pem",
        ssl_keyfile="a.key",
        ssl_ca_certs="b.pem",
        ssl_cert_reqs=1,
        allowed_origins=["https://a.com", "http://localhost:3000"],
        access_log=True,
        max_body_mib=64,
    )
    assert parse(to_flags(config), "octavo gateway", "") == config
