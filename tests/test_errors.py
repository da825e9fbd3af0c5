"""The tree of errors: who caused it, which exit code, and a docstring that draws it truly."""

from __future__ import annotations

import inspect

from lmloop import errors


def classes() -> list[type[errors.LmloopError]]:
    return [
        each
        for each in vars(errors).values()
        if inspect.isclass(each) and issubclass(each, errors.LmloopError)
    ]


def drawn_tree(text: str) -> dict[str, str]:
    """Each class in the drawing and the one that it hangs from."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        name = line.lstrip("│├└─ ").split(" ")[0]
        if name.endswith("Error"):
            depth = (len(line) - len(line.lstrip("│├└─ "))) // 4
            path = [*path[:depth], name]
            parents[name] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    real = {each.__name__: each.__bases__[0].__name__ for each in classes()}
    assert drawn_tree(errors.__doc__ or "") == real


def test_what_a_user_can_cause_exits_with_2_and_what_was_asked_for_with_0() -> None:
    for each in classes():
        expected = 2 if issubclass(each, errors.UsageError) else 1
        assert each.exit_code == (0 if each is errors.StoppedError else expected), each


def test_a_missing_extra_names_the_package_and_how_to_install_it() -> None:
    error = errors.MissingExtraError(package="trafilatura", extra="docs")
    assert str(error) == (
        "trafilatura is not installed, and this step needs it: pip install 'lmloop[docs]'"
    )


def test_a_too_long_prompt_is_a_400_with_openais_code() -> None:
    error = errors.ContextLengthError(prompt_tokens=900, context_length=512)
    assert isinstance(error, errors.RequestError)
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert "900" in str(error)
    assert "512" in str(error)


def test_a_too_long_prompt_names_the_parameter_that_is_too_long() -> None:
    error = errors.ContextLengthError(prompt_tokens=9, context_length=8, param="prompt")
    assert error.param == "prompt"
    assert str(error).endswith("shorten the prompt.")


def test_a_request_error_is_a_400_unless_it_says_otherwise() -> None:
    plain = errors.RequestError("no")
    assert (plain.status, plain.code, plain.param) == (400, None, None)
    missing = errors.RequestError("no", status=404, code="model_not_found", param="model")
    assert (missing.status, missing.code, missing.param) == (404, "model_not_found", "model")
