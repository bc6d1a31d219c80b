"""What programs in a sandbox find in their environment."""

from kernelbridge.egress.environment import SandboxNetwork, proxy_variables


def test_proxies_are_named_as_every_program_reads_them() -> None:
    variables = proxy_variables(3128)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        assert variables[name] == "http://127.0.0.1:3128"
    assert variables["NO_PROXY"] == variables["no_proxy"] == "localhost,127.0.0.1,::1"
    assert variables["NODE_USE_ENV_PROXY"] == "1"


def test_pip_does_not_try_again_for_long_what_is_refused() -> None:
    assert proxy_variables(3128)["PIP_RETRIES"] == "1"


def test_certificates_are_a_file_of_the_sandbox() -> None:
    network = SandboxNetwork({"A": "b"}, b"PEM")
    assert network.files == {"certificates.pem": b"PEM"}
    variables = network.environment("/run/kernelbridge")
    assert variables["A"] == "b"
    assert variables["SSL_CERT_FILE"] == variables["PIP_CERT"] == "/run/kernelbridge/certificates.pem"
    assert SandboxNetwork({"A": "b"}).environment("/run") == {"A": "b"}
    assert SandboxNetwork().files == {}
