"""The function that functions-framework serves: the event comes back."""

import functions_framework


@functions_framework.http
def echo(request):
    """The same as `return event`."""
    return request.get_json()
